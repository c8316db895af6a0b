#include "cuda/norm.cuh"
#include "cuda/norm_backward.cuh"
#include "cuda/norm_second.cuh"
#include "cuda/stream.h"

namespace fastmeta::cuda {

int norm_forward(const NormForwardArgs& args, double* partial, void* stream) {
  return on_stream(stream, [&](const auto& launch) { launch_norm_forward(args, partial, launch); });
}

int norm_backward(const NormBackwardArgs& args, const NormScratch& scratch, void* stream) {
  return on_stream(stream,
                   [&](const auto& launch) { launch_norm_backward(args, scratch, launch); });
}

int norm_second(const NormSecondArgs& args, const NormScratch& scratch, void* stream) {
  return on_stream(stream, [&](const auto& launch) { launch_norm_second(args, scratch, launch); });
}

}  // namespace fastmeta::cuda
