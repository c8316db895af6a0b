// The whole meta-step of a network that is a sequence of layers, for every task of a meta-batch: K
// inner SGD steps on the support set, the query gradient at the fast weights, and from it the
// meta-gradient by a reverse sweep over the inner steps. Images are channels last; those of a task
// that are not, are copied.
#pragma once

#include "fastmeta/loss.h"
#include "fastmeta/parallel.h"
#include "fastmeta/platform.h"
#include "fastmeta/reverse_sweep.h"

namespace fastmeta {

// In the order of KINDS in fastmeta/reference/sequence.py.
enum class LayerKind : int { conv, norm, activation, max_pool, mean_pool, linear };
constexpr int64_t kLayerKinds = 6;

// Flags of normalisations.
constexpr int64_t kNormPools = 1;   // 2x2 max-pooling is part of it
constexpr int64_t kNormLinear = 2;  // ReLU is not; then without pooling

// Activations of their own; the first are those of activation.h.
constexpr int64_t kLeakyRelu = 7;

// Values of one example: an image, or features (h = w = 1). `row` is their number in memory, with
// padding for the outputs of linear layers.
struct LayerMap {
  int64_t c;
  int64_t h;
  int64_t w;
  int64_t row;

  int64_t size() const { return c * h * w; }
};

struct SequenceLayer {
  LayerKind kind;
  // conv: stride. norm: flags of what follows, see below. activation: which. pools: width of the
  // windows; 0 for a mean over the map.
  int64_t option;
  double number;   // norm: eps; leaky ReLU: the slope of its negative part
  int64_t weight;  // offset in the parameters; -1 without
  int64_t bias;    // its offset; -1 without
  int64_t sets;    // norm: one (weight, bias) per inner step, one after the other; else 1
  int64_t first;   // index of the first parameter
  LayerMap in;
  LayerMap out;
  int64_t before;  // sum of the rows of the layers below
  int64_t stats;   // norm: offset of the mean in the statistics; the variance follows

  // The parameters at an inner step begin at weight + shift and bias + shift.
  int64_t set(int64_t step) const { return step < sets ? step : sets - 1; }
  int64_t shift(int64_t step) const { return set(step) * 2 * in.c; }
  int64_t params() const { return (weight >= 0) + (bias >= 0); }
};

// Examples of all tasks: x (tasks, n, first in), y (tasks, n, last out), or (tasks, n) int64 class
// numbers for cross-entropy. All buffers are contiguous.
struct SequenceExamples {
  const void* x;
  const void* y;
  int64_t n;
  bool channels_first;  // images of several channels, one after the other
};

struct SequenceArgs {
  DType dtype;  // f32 or f64
  const SequenceLayer* layers;
  int64_t depth;
  Loss loss;
  int64_t tasks;
  SequenceExamples support;
  SequenceExamples query;
  const void* params;  // (size): the initialisation, in torch's order
  int64_t size;
  const int64_t* sizes;  // (count): of each parameter
  int64_t count;
  double lr;
  int64_t steps;
  const int64_t* differentiated;  // masks over the parameters, see reverse_sweep.h
  int64_t masks;
  double lam_d;
  double lam_c;
  double lam_2;
  int64_t workers;     // tasks at once
  void* memory;        // of all workers: see sequence_plan.h
  void* rows;          // (tasks, size): the meta-gradients
  void* inner;         // (tasks, size): the mean inner gradients, or null
  void* support_loss;  // (tasks): before the first inner step; without one, the query loss
  void* query_loss;    // (tasks): after the last inner step
  void* query_output;  // (tasks, query.n, last out)
  void* stats;         // (tasks, steps + 1, stats): batch means and biased variances
  int64_t stats_size;
};

}  // namespace fastmeta
