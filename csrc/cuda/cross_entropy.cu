#include "cuda/cross_entropy.cuh"
#include "cuda/stream.h"

namespace fastmeta::cuda {

int cross_entropy_forward(const CrossEntropyForwardArgs& args, void* stream) {
  return on_stream(stream, [&](const auto& launch) { launch_cross_entropy_forward(args, launch); });
}

int cross_entropy_backward(const CrossEntropyBackwardArgs& args, void* stream) {
  return on_stream(stream,
                   [&](const auto& launch) { launch_cross_entropy_backward(args, launch); });
}

int cross_entropy_second(const CrossEntropySecondArgs& args, void* stream) {
  return on_stream(stream, [&](const auto& launch) { launch_cross_entropy_second(args, launch); });
}

}  // namespace fastmeta::cuda
