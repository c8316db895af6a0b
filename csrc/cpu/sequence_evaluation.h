// An evaluation of a sequence of layers: its buffers, and the order in which its passes take layers
// and examples.
#pragma once

#include "cpu/mlp_loss.h"
#include "cpu/sequence_linear.h"

namespace fastmeta::cpu::FM_ISA {
namespace sequence {

// Calls body with the type of a layer.
template <class T, class Body>
void with_layer(LayerKind kind, const Body& body) {
  switch (kind) {
    case LayerKind::conv:
      return body(Convolution<T>{});
    case LayerKind::norm:
      return body(Norm<T>{});
    case LayerKind::activation:
      return body(Elementwise<T>{});
    case LayerKind::max_pool:
      return body(Pooling<T, true>{});
    case LayerKind::mean_pool:
      return body(Pooling<T, false>{});
    case LayerKind::linear:
      return body(Linear<T>{});
  }
}

// Some of the examples, one after the other.
struct Examples {
  int64_t first;
  int64_t count;
};

// An evaluation of the network: where it is, and its buffers.
template <class T>
struct Evaluation {
  const SequenceArgs& args;
  int64_t step;
  const T* theta;
  const T* x;     // of the examples
  const void* y;  // their targets
  int64_t n;
  T* values;  // outputs of the layers, (n, row) each, but those of `again` and `second`
  T* deltas;  // their gradients; may be `values`, which they then replace from the last one down
  T* kept;    // gradients that are kept for the sweep; null without one
  int64_t differentiated;  // the lowest layer whose gradient the sweep differentiates
  T* softmax;              // cross-entropy's probabilities
  T* again;  // outputs of the first layer, or their gradients, of `part` examples; null if kept
  int64_t part;
  T* second;    // outputs of the second layer, or their gradients; null if kept with the others
  T* extremes;  // what pooling passes on of the first layer's outputs; null if that is not kept
  T* stats;
  T* scratch;
  T* low_scratch;  // of layers up to the lowest that is kept
  const Parallel& parallel;

  At<T> at(int64_t l) const { return at(l, {0, n}); }
  At<T> at(int64_t l, const Examples& some) const {
    T* own = l <= lowest() ? low_scratch : scratch;
    return {args.layers[l], some.count, step, theta, stats, own, parallel};
  }
  // Outputs of layer l, their gradients, its input, and the gradient of that; from an example on.
  T* value(int64_t l, int64_t first = 0) const {
    return l == 1 && second ? second + first * args.layers[1].out.row : of(values, l, first);
  }
  T* delta(int64_t l, int64_t first = 0) const {
    const int64_t row = args.layers[l].out.row;
    if (kept && keeps_delta(args, differentiated, l))
      return kept + n * deltas_before(args, differentiated, l) + first * row;
    return l == 1 && second ? second + first * row : of(deltas, l, first);
  }
  const T* input(int64_t l, int64_t first = 0) const {
    return l ? value(l - 1, first) : x + first * args.layers[0].in.row;
  }
  T* d_input(int64_t l, int64_t first = 0) const { return l ? delta(l - 1, first) : nullptr; }
  // Those of a layer that are kept in a place of `values`' form.
  T* of(T* maps, int64_t l, int64_t first = 0) const {
    if (l == 0 && again) return again;
    const int64_t before = args.layers[l].before - args.layers[lowest()].before;
    return maps + n * before + first * args.layers[l].out.row;
  }
  // The lowest layer whose outputs are kept.
  int64_t lowest() const { return second ? 2 : again ? 1 : 0; }
  bool keeps_extremes(int64_t l) const { return l == 1 && extremes; }
  T* extremes_of(int64_t first) const { return extremes + first * args.layers[1].out.row; }

  // The loss, which mlp_loss.h computes for a network of the last layer alone.
  struct Last {
    mlp::Network net;
    mlp::Data<T> data;
    mlp::Tape<T> tape;
  };
  Last last() const {
    const int64_t l = args.depth - 1;
    const LayerMap& out = args.layers[l].out;
    Last loss{{}, {x, y, n}, {value(l), softmax, nullptr, delta(l), 0}};
    loss.net.loss = args.loss;
    loss.net.layers = {{0, out.c, out.row, 0, 0, 0, false, Activation::relu}};
    return loss;
  }
};

// Batch statistics need all examples, all else one after the other. So layers run in stages, which
// begin with normalisations; a stage takes a few examples through all its layers and the sums of
// the next normalisation while their values are in the cache.
struct Stage {
  int64_t begin;
  int64_t end;
};

inline bool is_norm(const SequenceArgs& args, int64_t l) {
  return l < args.depth && args.layers[l].kind == LayerKind::norm;
}

// The stages of the layers below `top`.
inline std::vector<Stage> stages_of(const SequenceArgs& args, int64_t top) {
  std::vector<Stage> stages;
  for (int64_t l = 0; l < top; ++l)
    if (l == 0 || is_norm(args, l))
      stages.push_back({l, l + 1});
    else
      stages.back().end = l + 1;
  return stages;
}

// Calls body with all examples of a stage, a few at a time: about half a level-2 cache of the
// values of a layer. Smaller maps stay in the cache as they are.
template <class T, class Body>
void each_group(const Evaluation<T>& e, int64_t begin, int64_t end, const Body& body) {
  constexpr int64_t kGroup = (int64_t{1} << 20) / sizeof(T), kWhole = 4 * kGroup;
  int64_t row = 1;
  for (int64_t l = begin; l < std::min(end, e.args.depth); ++l)
    row = std::max(row, e.args.layers[l].out.row);
  int64_t each = row * e.n <= kWhole ? e.n : std::max<int64_t>(1, kGroup / row);
  if (begin == 0 && e.again) each = e.part;
  for (int64_t first = 0; first < e.n; first += each)
    body(Examples{first, std::min(each, e.n - first)});
}

// Calls body with some examples; for the layer above one whose values are not kept, with a part of
// them at a time, after computing those values.
template <class T, class Body>
void with_input(const Evaluation<T>& e, int64_t l, const Examples& some, const Body& body) {
  if (l != 1 || !e.again) return body(some);
  const int64_t end = some.first + some.count;
  for (int64_t first = some.first; first < end; first += e.part) {
    const Examples part{first, std::min(e.part, end - first)};
    Convolution<T>::forward(e.at(0, part), e.input(0, first), e.again);
    body(part);
  }
}

// The arguments of a norm, with the extremes of its windows in place of the input.
template <class T, class Args>
Args over_extremes(const Evaluation<T>& e, const Examples& some, Args args) {
  args.in = norm_of_extremes(args.in, e.extremes_of(some.first));
  return args;
}

}  // namespace sequence
}  // namespace fastmeta::cpu::FM_ISA
