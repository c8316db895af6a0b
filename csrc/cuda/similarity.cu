#include "cuda/similarity.cuh"
#include "cuda/stream.h"

namespace fastmeta::cuda {

int row_similarity(const RowSimilarityArgs& args, void* stream) {
  return on_stream(stream, [&](const auto& launch) { launch_row_similarity(args, launch); });
}

int mean_similarity(const MeanSimilarityArgs& args, void* stream) {
  return on_stream(stream, [&](const auto& launch) { launch_mean_similarity(args, launch); });
}

}  // namespace fastmeta::cuda
