// Launch plan of the CUDA kernel of mlp_step: the layers, and the memory of a block.
#pragma once

#include <algorithm>

#include "fastmeta/mlp.h"

namespace fastmeta {

// The layers are passed as kernel parameters.
constexpr int64_t kMaxMlpLayers = 64;

// Multiplications in one forward pass over a task's examples. A single block does them all, whereas
// the loop engine's products fill a GPU: beyond this the loop should be faster (estimated, not
// measured). The limit also keeps every index into a buffer in 32 bits.
constexpr int64_t kMaxMlpProducts = int64_t{1} << 25;

// Scratch of all blocks together, unless a single block needs more; it limits the number of blocks.
constexpr int64_t kMaxMlpScratchBytes = int64_t{1} << 30;

// Masks over layers, one per inner step, are passed as kernel parameters, too.
constexpr int64_t kMaxMlpMasks = 64;

struct MlpPlanLayer {
  const void* weight;
  const void* bias;  // or null
  Activation activation;
  int in;
  int out;
  int row;  // row stride in a weight set: odd, to avoid bank conflicts when a warp reads a column
  int set;  // offset of the layer in a weight set; its bias follows
  int params;  // and in a task gradient
  int units;   // outputs of the preceding layers
};

// Buffers of equal size: the first ones in shared memory, the rest in the block's scratch.
struct MlpBuffers {
  int64_t size;
  int64_t in_shared;  // number of buffers in shared memory
  int64_t shared;     // offset of these
  int64_t scratch;    // offset of the others

  template <class T>
  FM_HD T* at(int64_t k, T* shared_memory, T* scratch_memory) const {
    return k < in_shared ? shared_memory + shared + k * size
                         : scratch_memory + scratch + (k - in_shared) * size;
  }
};

struct MlpPlan {
  MlpPlanLayer layers[kMaxMlpLayers];
  int count;
  int params;                    // size of a task gradient
  int units;                     // outputs of all layers
  uint64_t masks[kMaxMlpMasks];  // bit l: the inner gradient of layer l is differentiated
  int mask_count;
  int kept;              // inner steps kept for the reverse sweep: all of them or none
  MlpBuffers direction;  // v and, if it is no multiple of v, d; none without a reverse sweep
  MlpBuffers tape;       // of an evaluation that is not kept, and of the tangents
  MlpBuffers weights;    // after every kept inner step, else the latest
  MlpBuffers tapes;      // of every kept inner step
  int64_t shared;        // elements per block
  int64_t scratch;
  int64_t blocks;

  FM_HD uint64_t mask(int64_t step) const {
    return masks[step < mask_count ? step : mask_count - 1];
  }
};

FM_HD bool has_layer(uint64_t mask, int layer) {
  return mask >> layer & 1;
}

// The lowest layer of a mask; `count` if it is empty.
FM_HD int lowest_layer(uint64_t mask, int count) {
  int layer = 0;
  while (layer < count && !has_layer(mask, layer)) ++layer;
  return layer;
}

// Inner steps with a mask of their own.
inline int64_t mlp_masks(const MlpArgs& args) {
  return std::max(int64_t{1}, std::min(args.masks, args.steps));
}

inline int64_t mlp_products(const MlpArgs& args) {
  int64_t products = 0;
  for (int64_t l = 0; l < args.count; ++l) products += args.layers[l].in * args.layers[l].out;
  return products * std::max(args.support.n, args.query.n);
}

// Places the most used buffers in `shared_capacity` elements of shared memory and the rest in
// scratch. The arguments must respect the limits above.
inline MlpPlan plan_mlp(const MlpArgs& args, int64_t shared_capacity) {
  MlpPlan plan{};
  int set = 0;
  for (int64_t l = 0; l < args.count; ++l) {
    const MlpLayer& from = args.layers[l];
    const int in = static_cast<int>(from.in), out = static_cast<int>(from.out), row = in | 1;
    const int bias = from.bias ? out : 0;
    plan.layers[plan.count++] = {from.weight, from.bias, from.activation, in,        out,
                                 row,         set,       plan.params,     plan.units};
    set += out * row + bias;
    plan.params += out * in + bias;
    plan.units += out;
  }
  const auto place = [&](int64_t count, int64_t size) {
    const int64_t in_shared = std::min(count, (shared_capacity - plan.shared) / size);
    const MlpBuffers buffers{size, in_shared, plan.shared, plan.scratch};
    plan.shared += in_shared * size;
    plan.scratch += (count - in_shared) * size;
    return buffers;
  };
  const int64_t kept = kept_steps(args);
  plan.kept = static_cast<int>(kept);
  plan.mask_count = static_cast<int>(mlp_masks(args));
  for (int k = 0; k < plan.mask_count; ++k)
    for (int64_t l = lowest_differentiated(args, k); l < args.count; ++l)
      if (mask_of(args, k)[l]) plan.masks[k] |= uint64_t{1} << l;
  const int64_t max_examples = std::max(args.support.n, args.query.n);
  plan.direction = place(kept == 0 ? 0 : scales_only(args) ? 1 : 2, set);
  plan.tape = place(1, 3 * max_examples * plan.units);
  plan.weights = place(kept + 1, set);
  plan.tapes = place(kept, 4 * args.support.n * plan.units);
  const int64_t bytes = plan.scratch * (args.dtype == DType::f64 ? 8 : 4);
  const int64_t fit = bytes ? std::max(int64_t{1}, kMaxMlpScratchBytes / bytes) : args.tasks;
  plan.blocks = std::min(args.tasks, fit);
  return plan;
}

namespace cuda {
// Elements of dynamic shared memory available to a block on the current device.
int64_t mlp_shared_capacity(DType dtype);
int mlp_step(const MlpArgs& args, const MlpPlan& plan, void* scratch, void* stream);
}  // namespace cuda

}  // namespace fastmeta
