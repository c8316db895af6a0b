// The whole meta-step of a small multi-layer perceptron (MLP), for every task of a meta-batch:
// K inner SGD steps on the support set, the query gradient at the fast weights, and from it the
// meta-gradient by a reverse sweep over the inner steps.
#pragma once

#include <algorithm>

#include "fastmeta/activation.h"
#include "fastmeta/loss.h"
#include "fastmeta/parallel.h"
#include "fastmeta/platform.h"

namespace fastmeta {

// A linear layer; its weight is (out, in), as in torch.
struct MlpLayer {
  int64_t in;
  int64_t out;
  const void* weight;
  const void* bias;       // (out), or null
  Activation activation;  // after it; the last layer has none
};

// Examples of all tasks: x (tasks, n, first in), y (tasks, n, last out), or (tasks, n) int64 class
// numbers for cross-entropy. All buffers are contiguous.
struct MlpExamples {
  const void* x;
  const void* y;
  int64_t n;
};

struct MlpArgs {
  DType dtype;  // f32 or f64
  const MlpLayer* layers;
  int64_t count;
  Loss loss;
  int64_t tasks;
  MlpExamples support;
  MlpExamples query;
  double lr;
  int64_t steps;
  // The layers whose inner gradient g is differentiated, (masks, count) zeros and ones on the host:
  // one mask per inner step, the last one for all further steps. With _m for these layers, the
  // reverse sweep takes every inner step by v <- v - lr H d, where
  // d = (lam_d + lam_c + lam_2) v_m - (lam_2 + lam_c <g_m, v_m> / |g_m|^2) g_m.
  const int64_t* differentiated;
  int64_t masks;
  double lam_d;
  double lam_c;
  double lam_2;
  void* rows;          // (tasks, P): the meta-gradients; weight, bias, weight, ...
  void* inner;         // (tasks, P): the mean inner gradients, or null
  void* support_loss;  // (tasks): before the first inner step; without one, the query loss
  void* query_loss;    // (tasks): after the last inner step
  void* query_output;  // (tasks, query.n, last out)
};

// The mask of an inner step.
inline const int64_t* mask_of(const MlpArgs& args, int64_t step) {
  return args.differentiated + std::min(step, args.masks - 1) * args.count;
}

// The lowest layer whose inner gradient is differentiated; `count` if there is none.
inline int64_t lowest_differentiated(const MlpArgs& args, int64_t step) {
  if (args.lam_d == 0 && args.lam_c == 0 && args.lam_2 == 0) return args.count;
  const int64_t* mask = mask_of(args, step);
  return std::find(mask, mask + args.count, 1) - mask;
}

// Inner steps that the reverse sweep needs: all of them, or none for the first-order gradient.
inline int64_t kept_steps(const MlpArgs& args) {
  for (int64_t k = 0; k < std::min(args.steps, args.masks); ++k)
    if (lowest_differentiated(args, k) < args.count) return args.steps;
  return 0;
}

// Whether d is a multiple of v_m, so that lam_d alone scales the rate.
inline bool scales_only(const MlpArgs& args) {
  return args.lam_c == 0 && args.lam_2 == 0;
}

}  // namespace fastmeta
