#include "cuda/gram.cuh"
#include "cuda/stream.h"

namespace fastmeta::cuda {

int gram(const GramArgs& args, void* stream) {
  return on_stream(stream, [&](const auto& launch) { launch_gram(args, launch); });
}

}  // namespace fastmeta::cuda
