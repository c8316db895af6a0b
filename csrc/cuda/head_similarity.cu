#include "cuda/head_similarity.cuh"
#include "cuda/stream.h"

namespace fastmeta::cuda {

int head_similarity(const HeadSimilarityArgs& args, const HeadPlan& plan, void* scratch,
                    void* stream) {
  return on_stream(
      stream, [&](const auto& launch) { launch_head_similarity(args, plan, scratch, launch); });
}

}  // namespace fastmeta::cuda
