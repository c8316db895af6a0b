// Batches of images in channels-last memory format, as the kernels take them.
#pragma once

#include "ops/tensors.h"

namespace fastmeta {

// In channels-last format and, on a GPU, aligned to 16 bytes; copied only if necessary.
inline Tensor channels_last(const Tensor& t) {
  int64_t stride = 1;
  bool last = true;
  for (int64_t d : {1, 3, 2, 0}) {
    last = last && (t.size(d) == 1 || t.stride(d) == stride);
    stride *= t.size(d);
  }
  if (!last) return torch::stable::contiguous(t, torch::headeronly::MemoryFormat::ChannelsLast);
  const bool aligned = reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0;
  return aligned || !t.is_cuda() ? t : torch::stable::clone(t);
}

inline Tensor empty_images(const Tensor& like, const Ints& shape) {
  return torch::stable::empty(shape, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              torch::headeronly::MemoryFormat::ChannelsLast);
}

}  // namespace fastmeta
