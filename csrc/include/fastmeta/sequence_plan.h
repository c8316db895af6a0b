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
      if (!layer.option) return in;
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

// Scratch of a layer's passes over n examples, and of its tangents over s of the support set.
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
  int64_t values;     // of an evaluation that is not kept; later the tangents
  int64_t probabilities;
  int64_t scratch;
  int64_t total;
};

inline SequencePlan plan_sequence(const SequenceArgs& args) {
  const SequenceLayer& last = args.layers[args.depth - 1];
  const int64_t maps = last.before + last.out.row, s = args.support.n, q = args.query.n;
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
  plan.tape = whole_vectors(s * (2 * maps + last.out.row));
  plan.tapes = take(plan.kept * plan.tape);
  plan.values = take((plan.kept ? q : std::max(s, q)) * maps);
  if (plan.kept && s > q) take((s - q) * maps);
  plan.probabilities = take(std::max(s, q) * last.out.row);
  int64_t scratch = 0;
  for (int64_t l = 0; l < args.depth; ++l)
    scratch = std::max(scratch, scratch_of(args.layers[l], std::max(s, q), s));
  plan.scratch = take(scratch);
  return plan;
}

}  // namespace fastmeta
