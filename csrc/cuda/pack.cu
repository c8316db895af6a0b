#include "cuda/pack.cuh"
#include "cuda/stream.h"

namespace fastmeta::cuda {

int pack(const Copy* copies, int64_t count, void* stream) {
  return on_stream(stream, [&](const auto& launch) { launch_pack(copies, count, launch); });
}

}  // namespace fastmeta::cuda
