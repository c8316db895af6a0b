// One MLP on one set of examples, by a block of threads: forward, gradient, and the R-operator (see
// cpu/mlp_network.h). Every thread of the block calls each function, which ends with a barrier.
#pragma once

#include "cuda/mlp_matrix.cuh"
#include "fastmeta/mlp_plan.h"

namespace fastmeta::cuda {

// Examples of one task.
template <class T>
struct Data {
  const T* x;
  const void* y;
  int n;
  T inv_count;  // weight of an example (for mse, of an element) in the mean loss
};

// What an evaluation stores; (n, out) per layer. Also the tangents of `out` and `delta`.
template <class T>
struct Tape {
  T* out;      // activations; outputs for the last layer
  T* delta;    // gradient of the pre-activations
  T* first;    // derivative of the activations; for the last layer, cross-entropy's probabilities
  T* second;   // second derivative, multiplied by the activation's gradient in backward; not
               // written below layer `lowest`
  int lowest;  // where the R-operator starts; the number of layers if it does not follow
};

// Inputs of a layer, (n, in).
template <class T>
__device__ const T* inputs_of(const MlpPlan& net, const Data<T>& data, const T* out, int l) {
  return l == 0 ? data.x : out + data.n * net.layers[l - 1].units;
}

template <class T>
__device__ void forward(const MlpPlan& net, const T* w, const Data<T>& data, const Tape<T>& tape) {
  for (int l = 0; l < net.count; ++l) {
    const MlpPlanLayer& layer = net.layers[l];
    const T *weight = w + layer.set, *bias = weight + layer.out * layer.row;
    const int at = data.n * layer.units;
    const Factors<T> factors[] = {
        {inputs_of(net, data, tape.out, l), layer.in, 1, weight, 1, layer.row, layer.in}};
    multiply(data.n, layer.out, factors, [&](int i, int j, T z) {
      const int k = at + i * layer.out + j;
      if (layer.bias) z += bias[j];
      if (l + 1 == net.count) {
        tape.out[k] = z;
        return;
      }
      with_activation(layer.activation, [&](auto f) {
        const auto c = curve<decltype(f)::value, ScalarMath<T>>(z);
        tape.out[k] = c.value;
        tape.first[k] = c.first;
        if (l >= tape.lowest) tape.second[k] = c.second;
      });
    });
    __syncthreads();
  }
}

// The deltas of all layers from the last one's.
template <class T>
__device__ void backward(const MlpPlan& net, const T* w, const Data<T>& data, const Tape<T>& tape) {
  for (int l = net.count - 1; l > 0; --l) {
    const MlpPlanLayer& layer = net.layers[l];
    const int at = data.n * layer.units, before = data.n * net.layers[l - 1].units;
    const Factors<T> factors[] = {
        {tape.delta + at, layer.out, 1, w + layer.set, layer.row, 1, layer.out}};
    multiply(data.n, layer.in, factors, [&](int i, int j, T d) {
      const int k = before + i * layer.in + j;
      if (l > tape.lowest) tape.second[k] *= d;
      tape.delta[k] = d * tape.first[k];
    });
    __syncthreads();
  }
}

// `v` is zero outside of the layers of `mask`, and not read there; so are the tangents of the
// layers below the lowest of them, tape.lowest. A product that is zero has depth 0.
template <class T>
__device__ void r_forward(const MlpPlan& net, const T* w, const T* v, uint64_t mask,
                          const Data<T>& data, const Tape<T>& tape, const Tape<T>& tangent) {
  for (int l = tape.lowest; l < net.count; ++l) {
    const MlpPlanLayer& layer = net.layers[l];
    const T *direction = v + layer.set, *bias = direction + layer.out * layer.row;
    const bool chosen = has_layer(mask, l);
    const int at = data.n * layer.units;
    const Factors<T> factors[] = {{inputs_of(net, data, tape.out, l), layer.in, 1, direction, 1,
                                   layer.row, chosen ? layer.in : 0},
                                  {inputs_of(net, data, tangent.out, l), layer.in, 1, w + layer.set,
                                   1, layer.row, l > tape.lowest ? layer.in : 0}};
    multiply(data.n, layer.out, factors, [&](int i, int j, T z) {
      const int k = at + i * layer.out + j;
      if (layer.bias && chosen) z += bias[j];
      if (l + 1 == net.count) {
        tangent.out[k] = z;
        return;
      }
      tangent.out[k] = z * tape.first[k];
      tangent.delta[k] = z * tape.second[k];  // r_backward adds the rest
    });
    __syncthreads();
  }
}

template <class T>
__device__ void r_backward(const MlpPlan& net, const T* w, const T* v, uint64_t mask,
                           const Data<T>& data, const Tape<T>& tape, const Tape<T>& tangent) {
  for (int l = net.count - 1; l > 0; --l) {
    const MlpPlanLayer& layer = net.layers[l];
    const int at = data.n * layer.units, before = data.n * net.layers[l - 1].units;
    const Factors<T> factors[] = {
        {tangent.delta + at, layer.out, 1, w + layer.set, layer.row, 1, layer.out},
        {tape.delta + at, layer.out, 1, v + layer.set, layer.row, 1,
         has_layer(mask, l) ? layer.out : 0}};
    multiply(data.n, layer.in, factors, [&](int i, int j, T d) {
      const int k = before + i * layer.in + j;
      d *= tape.first[k];
      tangent.delta[k] = l > tape.lowest ? tangent.delta[k] + d : d;
    });
    __syncthreads();
  }
}

constexpr uint64_t kEveryLayer = ~uint64_t{0};

// Calls put(index in a weight set, index in a task gradient, sum over the examples of delta times
// input) for every parameter of the layers of a mask; with tangents (else {}), the tangent of that
// sum.
template <class T, class Put>
__device__ void gradients(const MlpPlan& net, uint64_t mask, const Data<T>& data,
                          const Tape<T>& tape, const Tape<T>& tangent, const Put& put) {
  for (int l = 0; l < net.count; ++l) {
    if (!has_layer(mask, l)) continue;
    const MlpPlanLayer& layer = net.layers[l];
    const int at = data.n * layer.units;
    const T* delta = (tangent.delta ? tangent.delta : tape.delta) + at;
    const bool both = tangent.delta && l > tape.lowest;
    const Factors<T> factors[] = {
        {delta, 1, layer.out, inputs_of(net, data, tape.out, l), layer.in, 1, data.n},
        {tape.delta + at, 1, layer.out, inputs_of(net, data, both ? tangent.out : tape.out, l),
         layer.in, 1, both ? data.n : 0}};
    multiply(layer.out, layer.in, factors, [&](int i, int j, T sum) {
      put(layer.set + i * layer.row + j, layer.params + i * layer.in + j, sum);
    });
    for (int j = threadIdx.x; layer.bias && j < layer.out; j += kThreads) {
      T sum = 0;
      for (int i = 0; i < data.n; ++i) sum += delta[i * layer.out + j];
      put(layer.set + layer.out * layer.row + j, layer.params + layer.out * layer.in + j, sum);
    }
  }
  __syncthreads();
}

}  // namespace fastmeta::cuda
