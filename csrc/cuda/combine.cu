#include "cuda/combine.cuh"
#include "cuda/stream.h"

namespace fastmeta::cuda {

int combine(const CombineArgs& args, void* stream) {
  return on_stream(stream, [&](const auto& launch) { launch_combine(args, launch); });
}

}  // namespace fastmeta::cuda
