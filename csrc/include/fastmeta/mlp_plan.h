// What the CUDA kernel of mlp_step is told: the layers, and the memory of a block.
#pragma once

#include <algorithm>

#include "fastmeta/mlp.h"

namespace fastmeta {

// The layers travel as kernel parameters.
constexpr int64_t kMostMlpLayers = 64;

// Multiplications of one forward pass over a task's examples. One block does them all, where the
// loop's products fill a GPU: beyond this the loop should be faster (estimated, not measured). It
// also keeps every index inside a buffer in 32 bits.
constexpr int64_t kMostMlpProducts = int64_t{1} << 25;

// Scratch of all blocks together, unless one alone needs more; further tasks wait for a block.
constexpr int64_t kMostMlpScratchBytes = int64_t{1} << 30;

struct MlpPlanLayer {
  const void* weight;
  const void* bias;  // or null
  Activation activation;
  int in;
  int out;
  int row;     // of weights in a set: odd, so that a warp reading a column meets all banks
  int set;     // where the layer begins in a set of weights; its bias follows
  int params;  // and in a row of gradients
  int units;   // outputs of the layers before
};

// Equal buffers, the first of them in shared memory, the others in the block's scratch.
struct MlpBuffers {
  int64_t size;
  int64_t in_shared;  // how many are in shared memory
  int64_t shared;     // where they begin
  int64_t scratch;    // where the others begin

  template <class T>
  FM_HD T* at(int64_t k, T* shared_memory, T* scratch_memory) const {
    return k < in_shared ? shared_memory + shared + k * size
                         : scratch_memory + scratch + (k - in_shared) * size;
  }
};

struct MlpPlan {
  MlpPlanLayer layers[kMostMlpLayers];
  int count;
  int params;            // of a row of gradients
  int units;             // outputs of all layers
  MlpBuffers direction;  // in parameter space, if exact
  MlpBuffers tape;       // of an evaluation that is not kept, and of the motion
  MlpBuffers weights;    // after every inner step if exact, else the latest
  MlpBuffers tapes;      // of every inner step, if exact
  int64_t shared;        // elements of a block
  int64_t scratch;
  int64_t blocks;
};

inline int64_t mlp_products(const MlpArgs& args) {
  int64_t products = 0;
  for (int64_t l = 0; l < args.count; ++l) products += args.layers[l].in * args.layers[l].out;
  return products * std::max(args.support.n, args.query.n);
}

// `room` elements of shared memory go to the buffers used most; the rest is scratch. The arguments
// keep to the limits above.
inline MlpPlan plan_mlp(const MlpArgs& args, int64_t room) {
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
    const int64_t in_shared = std::min(count, (room - plan.shared) / size);
    const MlpBuffers buffers{size, in_shared, plan.shared, plan.scratch};
    plan.shared += in_shared * size;
    plan.scratch += (count - in_shared) * size;
    return buffers;
  };
  const int64_t kept = args.exact ? args.steps : 0;
  const int64_t most = std::max(args.support.n, args.query.n);
  plan.direction = place(args.exact, set);
  plan.tape = place(1, 3 * most * plan.units);
  plan.weights = place(kept + 1, set);
  plan.tapes = place(kept, 4 * args.support.n * plan.units);
  const int64_t bytes = plan.scratch * (args.dtype == DType::f64 ? 8 : 4);
  const int64_t fit = bytes ? std::max(int64_t{1}, kMostMlpScratchBytes / bytes) : args.tasks;
  plan.blocks = std::min(args.tasks, fit);
  return plan;
}

namespace cuda {
// Elements of dynamic shared memory that a block can have on the current device.
int64_t mlp_room(DType dtype);
int mlp_step(const MlpArgs& args, const MlpPlan& plan, void* scratch, void* stream);
}  // namespace cuda

}  // namespace fastmeta
