// A sequence of layers on one set of examples: forward, gradient, and the R-operator.
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
  T* values;   // outputs of the layers, (n, row) each, but those of `again` and `second`
  T* deltas;   // their gradients; may be `values`, which they then replace from the last one down
  T* softmax;  // cross-entropy's probabilities
  T* again;    // outputs of the first layer, or their gradients, of `part` examples; null if kept
  int64_t part;
  T* second;    // outputs of the second layer, null if kept with the others
  T* d_second;  // their gradients
  T* extremes;  // of the windows that the norm of `again` pools, of all examples; null if it
                // doesn't
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
    return l == 1 && second ? d_second + first * args.layers[1].out.row : of(deltas, l, first);
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
  // Whether outputs of other layers replace those of the second.
  bool shares_second() const { return second && second == d_second; }
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

inline std::vector<Stage> stages_of(const SequenceArgs& args) {
  std::vector<Stage> stages;
  for (int64_t l = 0; l < args.depth; ++l)
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

// Arguments of a norm whose input is computed again, for the extremes of its windows in its place.
template <class T, class Args>
Args over_extremes(const Evaluation<T>& e, const Examples& some, Args args) {
  args.in = norm_of_extremes(args.in, e.extremes_of(some.first));
  return args;
}

template <class T>
void forward(const Evaluation<T>& e) {
  for (const Stage& stage : stages_of(e.args)) {
    const int64_t end = stage.end;
    NormMoments moments;
    each_group(e, stage.begin, end, [&](const Examples& some) {
      for (int64_t l = e.again && stage.begin == 0 ? 1 : stage.begin; l < end; ++l) {
        if (e.keeps_extremes(l)) {
          const At<T> at = e.at(l, some);
          norm_apply(
              over_extremes(e, some, Norm<T>::forward_args(at, nullptr, e.value(l, some.first))),
              e.parallel);
          continue;
        }
        with_layer<T>(e.args.layers[l].kind, [&](auto layer) {
          with_input(e, l, some, [&](const Examples& part) {
            decltype(layer)::forward(e.at(l, part), e.input(l, part.first), e.value(l, part.first));
          });
        });
      }
      if (is_norm(e.args, end))
        with_input(e, end, some, [&](const Examples& part) {
          const NormInput in = Norm<T>::input(e.at(end, part), e.input(end, part.first));
          moments.add(in, e.parallel);
          if (e.keeps_extremes(end)) norm_extremes(in, e.extremes_of(part.first), e.parallel);
        });
    });
    if (is_norm(e.args, end))
      moments.finish(Norm<T>::forward_args(e.at(end), e.input(end), nullptr));
  }
}

// The backward pass of one layer that is no normalisation. The gradient of examples after others is
// computed in the scratch, as that of a network of this layer alone, and added.
template <class T>
void backward_layer(const Evaluation<T>& e, int64_t l, const Examples& some, const T* x, T* dx,
                    T* grad) {
  SequenceLayer layer = e.args.layers[l];
  At<T> at{layer, some.count, e.step, e.theta, e.stats, e.at(l).scratch, e.parallel};
  const bool adds = some.first && layer.weight >= 0;
  T* target = adds ? at.scratch : grad;
  if (adds) {
    at.theta += layer.weight;
    at.scratch += whole_vectors(params_size(layer));
    if (layer.bias >= 0) layer.bias -= layer.weight;
    layer.weight = 0;
  }
  with_layer<T>(layer.kind, [&](auto kind) {
    if constexpr (!std::is_same_v<decltype(kind), Norm<T>>)
      decltype(kind)::backward(at, x, e.delta(l, some.first), dx, target);
  });
  if (adds) add_to(grad + e.args.layers[l].weight, target, params_size(layer));
}

// The mean loss of the outputs, and its gradient with respect to all parameters.
template <class T>
T backward(const Evaluation<T>& e, T* grad) {
  const auto last = e.last();
  const T value = mlp::loss(last.net, last.data, last.tape);
  const std::vector<Stage> stages = stages_of(e.args);
  NormBackwardSums above;  // of the normalisation that the stage above begins with
  for (size_t k = stages.size(); k-- > 0;) {
    const auto [begin, end] = stages[k];
    const auto norm_args = [&](int64_t l, const Examples& some) {
      return Norm<T>::backward_args(e.at(l, some), e.input(l, some.first), e.delta(l, some.first),
                                    e.d_input(l, some.first), grad);
    };
    const auto apply_above = [&](const Examples& some) {
      if (is_norm(e.args, end))
        with_input(e, end, some, [&](const Examples& part) {
          const LayerMap& in = e.args.layers[end].in;
          above.apply(norm_args(end, part), static_cast<double>(e.n * in.h * in.w), e.parallel);
        });
    };
    NormBackwardSums sums;
    if (begin == 1 && e.shares_second()) {
      apply_above({0, e.n});  // the last use of the values in the place of the second layer's
      Convolution<T>::input_gradient(e.at(2), e.delta(2), e.delta(1));
      with_input(e, 1, {0, e.n}, [&](const Examples& part) {
        sums.add(norm_args(1, part), e.parallel);
        Norm<T>::forward(e.at(1, part), e.again, e.again);
        backward_layer<T>(e, 2, part, e.again, nullptr, grad);
      });
      above = std::move(sums);
      continue;
    }
    each_group(e, begin, end, [&](const Examples& some) {
      apply_above(some);
      for (int64_t l = end; l-- > begin;)
        if (!is_norm(e.args, l))
          backward_layer<T>(e, l, some, e.input(l, some.first), e.d_input(l, some.first), grad);
      if (!is_norm(e.args, begin)) return;
      if (e.keeps_extremes(begin))
        return sums.add(over_extremes(e, some, norm_args(begin, some)), e.parallel);
      with_input(e, begin, some,
                 [&](const Examples& part) { sums.add(norm_args(begin, part), e.parallel); });
    });
    above = std::move(sums);
  }
  return value;
}

// The parameters of a layer that an inner step uses: their indices are [begin, end).
inline std::pair<int64_t, int64_t> used_params(const SequenceLayer& layer, int64_t step) {
  const int64_t count = layer.params(), begin = layer.first + layer.set(step) * count;
  return {begin, begin + count};
}

// The Hessian of the mean loss times v, where `mask` says which parameters have a direction; v is
// zero elsewhere. `tangents` holds those of all layers whose values are kept; `again` and `second`
// hold the values of all examples, followed by their tangents.
template <class T>
void hessian_product(const Evaluation<T>& e, const T* v, const int64_t* mask, T* tangents,
                     T* product) {
  const int64_t depth = e.args.depth;
  const auto directed = [&](int64_t l) {
    const auto [begin, end] = used_params(e.args.layers[l], e.step);
    return std::find(mask + begin, mask + end, 1) != mask + end;
  };
  int64_t lowest = 0;
  while (lowest < depth && !directed(lowest)) ++lowest;
  if (lowest == depth) return void(memset(product, 0, sizeof(T) * e.args.size));
  if (e.again) Convolution<T>::forward(e.at(0), e.x, e.again);
  if (e.second) Norm<T>::forward(e.at(1), e.again, e.second);
  const auto tangent = [&](int64_t l) {
    if (l == 0 && e.again) return e.again + e.at(0).out_size();
    return l == 1 && e.second ? e.second + e.at(1).out_size() : e.of(tangents, l);
  };
  const bool norm = e.args.layers[lowest].kind == LayerKind::norm;
  if (norm) memset(tangent(lowest - 1), 0, sizeof(T) * e.at(lowest).in_size());
  const auto at = [&](int64_t l) -> Tangents<T> {
    const bool through = l > lowest || (l == lowest && norm);
    return {e.input(l),
            e.delta(l),
            through ? tangent(l - 1) : nullptr,
            tangent(l),
            directed(l) ? v : nullptr,
            product,
            through};
  };
  for (int64_t l = lowest; l < depth; ++l)
    with_layer<T>(e.args.layers[l].kind,
                  [&](auto layer) { decltype(layer)::r_forward(e.at(l), at(l)); });
  const auto last = e.last();
  T* outputs = tangent(depth - 1);
  mlp::r_loss<T>(last.net, last.data, last.tape, {outputs, outputs, nullptr});
  for (int64_t l = depth; l-- > 0;)
    with_layer<T>(e.args.layers[l].kind, [&](auto layer) {
      T* rdx = l ? tangent(l - 1) : nullptr;
      decltype(layer)::r_backward(e.at(l), at(l), rdx);
    });
}

}  // namespace sequence
}  // namespace fastmeta::cpu::FM_ISA
