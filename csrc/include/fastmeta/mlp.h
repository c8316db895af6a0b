// The whole meta-step of a small multi-layer perceptron (MLP), for every task of a meta-batch:
// K inner SGD steps on the support set, the query gradient at the fast weights, and from it the
// meta-gradient by a reverse sweep over the inner steps.
#pragma once

#include "fastmeta/activation.h"
#include "fastmeta/loss.h"
#include "fastmeta/parallel.h"
#include "fastmeta/platform.h"
#include "fastmeta/reverse_sweep.h"

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
  const int64_t* differentiated;  // masks over the layers, see reverse_sweep.h
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

}  // namespace fastmeta
