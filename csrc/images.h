// Batches of images as the kernels take them: channels last in memory.
#pragma once

#include "tensors.h"

namespace fastmeta {

// Copied only if it is not in that order.
inline Tensor channels_last(const Tensor& t) {
  int64_t stride = 1;
  bool last = true;
  for (int64_t d : {1, 3, 2, 0}) {
    last = last && (t.size(d) == 1 || t.stride(d) == stride);
    stride *= t.size(d);
  }
  return last ? t : torch::stable::contiguous(t, torch::headeronly::MemoryFormat::ChannelsLast);
}

inline Tensor empty_images(const Tensor& like, const Ints& shape) {
  return torch::stable::empty(shape, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              torch::headeronly::MemoryFormat::ChannelsLast);
}

}  // namespace fastmeta
