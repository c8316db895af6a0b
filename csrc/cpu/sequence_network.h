// A sequence of layers on one set of examples: forward, gradient, and the R-operator.
#pragma once

#include "cpu/sequence_evaluation.h"

namespace fastmeta::cpu::FM_ISA {
namespace sequence {

template <class T>
void forward_layer(const Evaluation<T>& e, int64_t l, const Examples& some) {
  if (e.keeps_extremes(l)) {
    const At<T> at = e.at(l, some);
    const auto args = Norm<T>::forward_args(at, nullptr, e.value(l, some.first));
    return norm_apply(over_extremes(e, some, args), e.parallel);
  }
  with_layer<T>(e.args.layers[l].kind, [&](auto layer) {
    with_input(e, l, some, [&](const Examples& part) {
      decltype(layer)::forward(e.at(l, part), e.input(l, part.first), e.value(l, part.first));
    });
  });
}

template <class T>
void forward(const Evaluation<T>& e) {
  for (const Stage& stage : stages_of(e.args, e.args.depth)) {
    const int64_t end = stage.end;
    NormMoments moments;
    each_group(e, stage.begin, end, [&](const Examples& some) {
      for (int64_t l = e.again && stage.begin == 0 ? 1 : stage.begin; l < end; ++l)
        forward_layer(e, l, some);
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

// The gradients of the parameters of the layers below `top`, from that of the values there.
template <class T>
void backward_below(const Evaluation<T>& e, int64_t top, T* grad) {
  const std::vector<Stage> stages = stages_of(e.args, top);
  NormBackwardSums above;  // of the normalisation that the stage above begins with
  for (size_t k = stages.size(); k-- > 0;) {
    const auto [begin, end] = stages[k];
    const auto norm_args = [&](int64_t l, const Examples& some) {
      return Norm<T>::backward_args(e.at(l, some), e.input(l, some.first), e.delta(l, some.first),
                                    e.d_input(l, some.first), grad);
    };
    const auto apply_above = [&](const Examples& some) {
      if (end < top)
        with_input(e, end, some, [&](const Examples& part) {
          const LayerMap& in = e.args.layers[end].in;
          above.apply(norm_args(end, part), static_cast<double>(e.n * in.h * in.w), e.parallel);
        });
    };
    NormBackwardSums sums;
    if (begin == 1 && end > 2 && e.second) {
      apply_above({0, e.n});  // the last use of values in the place of the second layer's
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
}

// The mean loss of the outputs, and its gradient with respect to all parameters.
template <class T>
T backward(const Evaluation<T>& e, T* grad) {
  const auto last = e.last();
  const T value = mlp::loss(last.net, last.data, last.tape);
  backward_below(e, e.args.depth, grad);
  return value;
}

// The parameters of a layer that an inner step uses: their indices are [begin, end).
inline std::pair<int64_t, int64_t> used_params(const SequenceLayer& layer, int64_t step) {
  const int64_t count = layer.params(), begin = layer.first + layer.set(step) * count;
  return {begin, begin + count};
}

// The gradient of a convolution's values from that of the normalisation above, in their place.
template <class T>
T* delta_again(const Evaluation<T>& e, int64_t l) {
  const At<T> at = e.at(l + 1);
  NormBackwardArgs args =
      Norm<T>::backward_args(at, e.value(l), e.delta(l + 1), e.value(l), nullptr);
  args.dweight = at.scratch;
  args.dbias = at.scratch + whole_vectors(at.layer.in.c);
  norm_backward(args, at.parallel);
  return e.value(l);
}

// The Hessian of the mean loss times v, where `mask` says which parameters have a direction; v is
// zero elsewhere. `tangents` holds those of the values that are kept. If a layer whose values are
// not kept, or the next one, has a direction, `again` and `second` hold the values of all examples,
// followed by their tangents. Values are overwritten.
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
  const bool low = lowest <= e.lowest();
  if (low && e.again) Convolution<T>::forward(e.at(0), e.x, e.again);
  if (low && e.second) Norm<T>::forward(e.at(1), e.again, e.second);
  const auto tangent = [&](int64_t l) {
    if (l == 0 && e.again) return e.again + e.at(0).out_size();
    return l == 1 && e.second ? e.second + e.at(1).out_size() : e.of(tangents, l);
  };
  const bool norm = e.args.layers[lowest].kind == LayerKind::norm;
  if (norm) memset(tangent(lowest - 1), 0, sizeof(T) * e.at(lowest).in_size());
  const auto at = [&](int64_t l, const T* dy) -> Tangents<T> {
    T* u = l > lowest || norm ? tangent(l - 1) : nullptr;
    return {e.input(l), dy, u, tangent(l), directed(l) ? v : nullptr, product};
  };
  for (int64_t l = lowest; l < depth; ++l)
    with_layer<T>(e.args.layers[l].kind,
                  [&](auto layer) { decltype(layer)::r_forward(e.at(l), at(l, e.delta(l))); });
  const auto last = e.last();
  T* outputs = tangent(depth - 1);
  mlp::r_loss<T>(last.net, last.data, last.tape, {outputs, outputs, nullptr});
  for (int64_t l = depth; l-- > lowest;) {
    const bool kept = keeps_delta(e.args, e.differentiated, l);
    const T* dy = l && !kept ? delta_again(e, l) : e.delta(l);
    with_layer<T>(e.args.layers[l].kind, [&](auto layer) {
      decltype(layer)::r_backward(e.at(l), at(l, dy), l ? tangent(l - 1) : nullptr);
    });
  }
  // Below, where nothing has a direction, it is an ordinary backward pass.
  Evaluation<T> below = e;
  below.deltas = tangents;
  below.kept = nullptr;
  if (low && e.again) below.again = tangent(0);
  if (low && e.second) below.second = tangent(1);
  backward_below(below, lowest, product);
}

}  // namespace sequence
}  // namespace fastmeta::cpu::FM_ISA
