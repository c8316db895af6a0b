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

// The number of values of the weight and the bias of a convolution or linear layer.
inline int64_t params_size(const SequenceLayer& layer) {
  const int64_t inputs = layer.kind == LayerKind::conv ? 9 * layer.in.c : layer.in.size();
  return (inputs + (layer.bias >= 0)) * layer.out.c;
}

// How many of n examples the tangents of a layer's passes take at a time where they add two terms,
// one of which is in the scratch: as many as stay in a cache.
inline int64_t examples_at_a_time(const SequenceLayer& layer, int64_t n) {
  constexpr int64_t kValues = int64_t{1} << 16;
  return std::clamp<int64_t>(kValues / std::max(layer.in.row, layer.out.row), 1, n);
}

// Scratch of a layer's passes over n examples, and of its tangents over s, if there are any. The
// gradient of some of the examples comes first in it, see backward_layer() in sequence_network.h.
inline int64_t scratch_of(const SequenceLayer& layer, int64_t n, int64_t s) {
  const int64_t in = layer.in.size(), out = layer.out.row, row = whole_vectors(in);
  const int64_t term = s ? examples_at_a_time(layer, s) * std::max(layer.in.row, out) : 0;
  switch (layer.kind) {
    case LayerKind::conv: {
      const int64_t params = whole_vectors(params_size(layer)), bias = whole_vectors(layer.out.c);
      return bias + params + whole_vectors(term);
    }
    case LayerKind::norm:
      return whole_vectors(term) + 2 * whole_vectors(layer.in.c);
    case LayerKind::linear:
      return whole_vectors(params_size(layer)) +
             2 * (out + layer.out.c * row + std::max(n, out) * row);
    default:
      return 0;
  }
}

// How many of the lowest layers have values that are computed again by the passes that read them.
// The first, a few examples at a time: a convolution of few channels before a normalisation takes
// about as long as its output's way to memory and back, and that output is most of the memory of
// such networks. Without pooling, the output of that normalisation is most of the rest, so that it
// shares its place with all values above the next convolution's: they follow it in the forward pass
// and are used up when the backward pass needs it.
inline int64_t dropped_layers(const SequenceArgs& args) {
  const auto is = [&](int64_t l, LayerKind kind) {
    return l < args.depth && args.layers[l].kind == kind;
  };
  if (!is(0, LayerKind::conv) || !is(1, LayerKind::norm) || args.layers[0].in.c > 4) return 0;
  const bool pools = (args.layers[1].option & kNormPools) != 0;
  return !pools && is(2, LayerKind::conv) && is(3, LayerKind::norm) ? 2 : 1;
}

// Whether the sweep's direction d is v itself.
inline bool differentiates_all(const SequenceArgs& args) {
  const int64_t* end = args.differentiated + args.masks * args.count;
  return scales_only(args) && std::find(args.differentiated, end, 0) == end;
}

// Whether the pixels of the first layer's values that pooling passes on are kept, a quarter of
// them, with which half of the passes do without the others. A convolution of one channel takes no
// longer than choosing them.
inline bool keeps_extremes(const SequenceArgs& args) {
  return dropped_layers(args) == 1 && args.layers[0].in.c > 1 &&
         (args.layers[1].option & kNormPools);
}

// The lowest layer whose gradient the sweep differentiates at any inner step; `depth` without one.
inline int64_t lowest_differentiated_layer(const SequenceArgs& args) {
  for (int64_t l = 0; l < args.depth; ++l) {
    const SequenceLayer& layer = args.layers[l];
    for (int64_t k = 0; k < std::min(args.steps, args.masks); ++k) {
      const int64_t* begin = mask_of(args, k) + layer.first;
      const int64_t* end = begin + layer.sets * layer.params();
      if (std::find(begin, end, 1) != end) return l;
    }
  }
  return args.depth;
}

// Whether the gradient of a layer's values is kept for the sweep. Below the lowest layer that it
// differentiates it needs none; that of a convolution's values it computes again from that of the
// normalisation above, in a pass over them.
inline bool keeps_delta(const SequenceArgs& args, int64_t lowest, int64_t l) {
  const bool again = args.layers[l].kind == LayerKind::conv && l + 1 < args.depth &&
                     args.layers[l + 1].kind == LayerKind::norm;
  return l >= lowest && !again;
}
// The sum of the rows of the gradients on the tape of the layers below.
inline int64_t deltas_before(const SequenceArgs& args, int64_t lowest, int64_t layer) {
  int64_t sum = 0;
  for (int64_t l = lowest; l < layer; ++l)
    if (keeps_delta(args, lowest, l)) sum += args.layers[l].out.row;
  return sum;
}

// Offsets in a worker's memory, in elements.
struct SequencePlan {
  int64_t kept;       // inner steps kept for the reverse sweep: all of them or none
  int64_t size;       // of parameters
  int64_t theta;      // the latest fast weights; if kept, those before each step but the first
  int64_t product;    // H d, in the place of the last fast weights, which the sweep does not read
  int64_t gradients;  // if the sweep compares them, all inner gradients; else they go to the result
  int64_t cotangent;  // d, unless it is v itself
  int64_t lowest;     // layer that the sweep differentiates
  int64_t tapes;      // of kept inner steps: values, gradients, probabilities
  int64_t tape;       // size of one
  int64_t deltas;     // row of the gradients on it
  int64_t dropped;    // layers whose values are not kept: see dropped_layers()
  int64_t first;      // row of the first layer's values, if dropped
  int64_t second;     // row of the second's, if dropped
  int64_t third;      // row of the values below which those of the second are, if dropped
  int64_t part;       // examples whose values of the first layer are there at a time, if dropped
  int64_t maps;       // row of all values that are kept
  int64_t images[2];  // copies of the support and query images, in one place if the former are
                      // read in inner steps only
  int64_t values;     // what is not kept: values, gradients; in the sweep the tangents
  int64_t probabilities;
  int64_t extremes;     // pixels that pooling passes on: see keeps_extremes()
  int64_t again;        // a part of the first layer's values
  int64_t low_scratch;  // of layers 0 to `dropped`, above `again`
  int64_t scratch;      // of the others, in the place of `again`
  int64_t total;
};

inline SequencePlan plan_sequence(const SequenceArgs& args) {
  const SequenceLayer& last = args.layers[args.depth - 1];
  const int64_t s = args.support.n, q = args.query.n, most = std::max(s, q);
  const int64_t element = args.dtype == DType::f64 ? 8 : 4;
  constexpr int64_t kFewest = int64_t{1} << 17, kMost = int64_t{1} << 19;  // bytes, for a cache
  SequencePlan plan{};
  const auto take = [&](int64_t size) {
    const int64_t at = plan.total;
    plan.total += whole_vectors(size);
    return at;
  };
  plan.kept = kept_steps(args);
  plan.size = whole_vectors(args.size);
  const int64_t thetas = plan.kept ? plan.kept : std::min<int64_t>(args.steps, 1);
  plan.theta = take(plan.size * thetas);
  plan.product = plan.theta + plan.size * (thetas - 1);
  plan.gradients = take(scales_only(args) ? 0 : plan.size * plan.kept);
  plan.cotangent = take(plan.kept && !differentiates_all(args) ? plan.size : 0);
  plan.dropped = dropped_layers(args);
  plan.first = plan.dropped > 0 ? args.layers[0].out.row : 0;
  plan.second = plan.dropped > 1 ? args.layers[1].out.row : 0;
  plan.third = plan.dropped > 1 ? args.layers[2].out.row : 0;
  plan.maps = last.before + last.out.row - plan.first - plan.second;
  plan.lowest = lowest_differentiated_layer(args);
  plan.deltas = deltas_before(args, plan.lowest, args.depth);
  plan.tape = whole_vectors(s * (plan.maps + plan.deltas + last.out.row));
  plan.tapes = take(plan.kept * plan.tape);
  const auto copied = [&](const SequenceExamples& all) {
    return all.channels_first ? all.n * args.layers[0].in.row : 0;
  };
  const int64_t support = copied(args.support), query = copied(args.query);
  plan.images[0] = take(plan.kept ? support : std::max(support, query));
  plan.images[1] = plan.kept ? take(query) : plan.images[0];
  const int64_t row = plan.third + std::max(plan.second, plan.maps - plan.third);
  const int64_t low = plan.lowest > plan.dropped ? plan.second : 2 * (plan.first + plan.second);
  plan.values = take(std::max(most * row, plan.kept ? s * (plan.maps + low) : 0));
  plan.probabilities = take(most * last.out.row);
  plan.extremes = take(keeps_extremes(args) ? most * args.layers[1].out.row : 0);
  const int64_t image = element * args.layers[0].out.row;
  plan.part = std::clamp<int64_t>(std::clamp(most * image / 8, kFewest, kMost) / image, 1, most);
  int64_t below = 0, above = 0;
  for (int64_t l = 0; l < args.depth; ++l) {
    int64_t& scratch = l <= plan.dropped ? below : above;
    const bool differentiated = plan.kept && l >= plan.lowest;
    scratch = std::max(scratch, scratch_of(args.layers[l], most, differentiated ? s : 0));
  }
  const int64_t part = whole_vectors(plan.part * plan.first);
  plan.again = plan.scratch = take(std::max(part + below, above));
  plan.low_scratch = plan.again + part;
  return plan;
}

}  // namespace fastmeta
