// Launch plan of the CUDA kernel of head_similarity: the memory of a block.
#pragma once

#include <algorithm>

#include "fastmeta/head_similarity.h"

namespace fastmeta {

// Examples times classes times features of a task. A single block does them all, whereas matrix
// products over all tasks fill a GPU: beyond this they should be faster (estimated, not measured).
// The limit also keeps every index into a task's buffers in 32 bits.
constexpr int64_t kMaxHeadProducts = int64_t{1} << 22;

// Shared memory of a block, so that several fit on a multiprocessor and none has to opt in.
constexpr int64_t kHeadSharedBytes = 47 * 1024;

// Scratch of all blocks together, unless a single block needs more; it limits the number of blocks.
constexpr int64_t kMaxHeadScratchBytes = int64_t{1} << 30;

struct HeadPlan {
  int64_t examples;         // elements for (examples, classes) matrices and biases
  int64_t direction;        // and for D
  bool examples_in_shared;  // otherwise in the block's scratch
  bool direction_in_shared;
  int64_t shared;  // elements per block
  int64_t scratch;
  int64_t blocks;
};

inline int64_t head_products(const HeadSimilarityArgs& args) {
  return args.n * args.classes * args.width;
}

inline HeadPlan plan_head(const HeadSimilarityArgs& args, int64_t shared_bytes) {
  const int64_t element = args.dtype == DType::f64 ? 8 : 4, capacity = shared_bytes / element;
  HeadPlan plan{};
  plan.examples = (3 * args.n + 2) * args.classes;
  plan.direction = args.classes * args.width;
  const auto place = [&](int64_t size) {
    const bool fits = plan.shared + size <= capacity;
    (fits ? plan.shared : plan.scratch) += size;
    return fits;
  };
  plan.examples_in_shared = place(plan.examples);
  plan.direction_in_shared = place(plan.direction);
  const int64_t bytes = plan.scratch * element;
  const int64_t fit = bytes ? std::max(int64_t{1}, kMaxHeadScratchBytes / bytes) : args.tasks;
  plan.blocks = std::min(args.tasks, std::min(fit, int64_t{1} << 30));
  return plan;
}

namespace cuda {
int head_similarity(const HeadSimilarityArgs& args, const HeadPlan& plan, void* scratch,
                    void* stream);
}  // namespace cuda

}  // namespace fastmeta
