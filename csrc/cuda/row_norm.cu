#include "cuda/row_norm.cuh"
#include "cuda/stream.h"

namespace fastmeta::cuda {

int row_norm_forward(const RowNormForwardArgs& args, void* stream) {
  return on_stream(stream, [&](const auto& launch) { launch_row_norm_forward(args, launch); });
}

int row_norm_backward(const RowNormBackwardArgs& args, void* stream) {
  return on_stream(stream, [&](const auto& launch) { launch_row_norm_backward(args, launch); });
}

int row_norm_second(const RowNormSecondArgs& args, void* stream) {
  return on_stream(stream, [&](const auto& launch) { launch_row_norm_second(args, launch); });
}

}  // namespace fastmeta::cuda
