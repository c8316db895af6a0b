// The layers of a sequence with their shapes, and the memory that a worker needs.
#pragma once

#include <algorithm>
#include <vector>

#include "fastmeta/sequence.h"

namespace fastmeta {

// In place of the inner step: the adapted network, whose norms have the last of their sets.
constexpr int64_t kAdapted = INT64_MAX;

// Whole vectors of every instruction set.
inline int64_t whole_vectors(int64_t size) {
  return (size + 15) / 16 * 16;
}

// The values that a layer leaves for an input that suits it.
inline LayerMap output_of(const SequenceLayer& layer, const LayerMap& in, int64_t features) {
  LayerMap out = in;
  switch (layer.kind) {
    case LayerKind::conv:
      out.c = features;
      out.h = (in.h - 1) / layer.option + 1;
      out.w = (in.w - 1) / layer.option + 1;
      break;
    case LayerKind::norm:
      if (!(layer.option & kNormPools)) return in;
      out.h = in.h / 2;
      out.w = in.w / 2;
      break;
    case LayerKind::max_pool:
    case LayerKind::mean_pool:
      out.h = layer.option ? in.h / layer.option : 1;
      out.w = layer.option ? in.w / layer.option : 1;
      break;
    case LayerKind::linear:
      return {features, 1, 1, whole_vectors(features)};
    case LayerKind::activation:
      return in;
  }
  out.row = out.size();
  return out;
}

// Scratch of a layer's passes over n examples, and of its tangents over s, if there are any.
inline int64_t scratch_of(const SequenceLayer& layer, int64_t n, int64_t s) {
  const int64_t in = layer.in.size(), out = layer.out.row, row = whole_vectors(in);
  switch (layer.kind) {
    case LayerKind::conv:
      // The second terms of the tangents, and of the product.
      return whole_vectors(s * std::max(layer.in.row, out)) +
             whole_vectors(9 * layer.in.c * layer.out.c) + 2 * whole_vectors(layer.out.c);
    case LayerKind::norm:
      return whole_vectors(s * layer.in.row) + 2 * whole_vectors(layer.in.c);
    case LayerKind::linear:
      return 2 * (out + layer.out.c * row + std::max(n, out) * row);
    default:
      return 0;
  }
}

// Whether the values of the first layer are computed again, a few examples at a time, by the passes
// that read them: a convolution of few channels before a normalisation takes about as long as its
// output's way to memory and back, and that output is most of the memory of such networks.
inline bool drops_first(const SequenceArgs& args) {
  return args.depth > 1 && args.layers[0].kind == LayerKind::conv &&
         args.layers[1].kind == LayerKind::norm && args.layers[0].in.c <= 4;
}

// Offsets in a worker's memory, in elements.
struct SequencePlan {
  int64_t kept;       // inner steps kept for the reverse sweep: all of them or none
  int64_t size;       // of parameters
  int64_t theta;      // the latest fast weights; if kept, those before each step but the first
  int64_t gradients;  // the latest inner gradient; if the sweep compares gradients, all
  int64_t cotangent;  // d
  int64_t product;    // H d, and the gradient of some of the examples
  int64_t tapes;      // of kept inner steps: values, their gradients, probabilities
  int64_t tape;       // size of one
  int64_t dropped;    // row of the first layer's values if they are not kept, else 0
  int64_t part;       // examples whose values of that layer are there at a time
  int64_t again;      // those
  int64_t maps;       // row of all values that are kept
  int64_t values;     // of an evaluation that is not kept; later the tangents, and what is dropped
  int64_t probabilities;
  int64_t scratch;
  int64_t total;
};

inline SequencePlan plan_sequence(const SequenceArgs& args) {
  const SequenceLayer& last = args.layers[args.depth - 1];
  const int64_t s = args.support.n, q = args.query.n, most = std::max(s, q);
  const int64_t element = args.dtype == DType::f64 ? 8 : 4;
  constexpr int64_t kPart = int64_t{1} << 19;  // bytes: a part of a level-2 cache
  SequencePlan plan{};
  const auto take = [&](int64_t size) {
    const int64_t at = plan.total;
    plan.total += whole_vectors(size);
    return at;
  };
  plan.kept = kept_steps(args);
  plan.size = whole_vectors(args.size);
  plan.theta = take(plan.size * (plan.kept ? plan.kept : std::min<int64_t>(args.steps, 1)));
  plan.gradients = take(plan.size * (plan.kept && !scales_only(args) ? plan.kept : 1));
  plan.cotangent = take(plan.kept ? plan.size : 0);
  plan.product = take(plan.size);
  plan.dropped = drops_first(args) ? args.layers[0].out.row : 0;
  plan.maps = last.before + last.out.row - plan.dropped;
  plan.part = std::clamp<int64_t>(kPart / (element * args.layers[0].out.row), 1, most);
  plan.again = take(plan.part * plan.dropped);
  plan.tape = whole_vectors(s * (2 * plan.maps + last.out.row));
  plan.tapes = take(plan.kept * plan.tape);
  plan.values =
      take(std::max(most * plan.maps, plan.kept ? s * (plan.maps + 2 * plan.dropped) : 0));
  plan.probabilities = take(most * last.out.row);
  int64_t scratch = 0;
  for (int64_t l = 0; l < args.depth; ++l)
    scratch = std::max(scratch, scratch_of(args.layers[l], most, plan.kept ? s : 0));
  plan.scratch = take(scratch);
  return plan;
}

}  // namespace fastmeta
