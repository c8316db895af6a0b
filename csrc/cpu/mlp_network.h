// One MLP on one set of examples: forward, gradient, and Pearlmutter's R-operator (Pearlmutter
// 1994, "Fast Exact Multiplication by the Hessian"), which differentiates both along a direction.
#pragma once

#include <vector>

#include "cpu/matrix.h"
#include "cpu/mlp_math.h"
#include "fastmeta/mlp.h"

namespace fastmeta::cpu::FM_ISA {
namespace mlp {

// Sizes of a layer, and its offsets in the padded buffers.
struct Layer {
  int64_t in;
  int64_t out;
  int64_t row;        // padded out: one example, or one input's weights
  int64_t by_input;   // weight (in, out), then the bias as one more row
  int64_t by_output;  // weight (out, in)
  int64_t units;      // padded units before this layer
  bool bias;
  Activation activation;
};

struct Network {
  std::vector<Layer> layers;
  Loss loss;
  int64_t by_input = 0;  // totals
  int64_t by_output = 0;
  int64_t units = 0;
  int64_t max_width = 0;
  int64_t largest = 0;  // padded weight (out, in) of any layer
};

// Parameters, or a direction in parameter space. Products need the weights in both layouts.
template <class T>
struct Weights {
  T* by_input;
  T* by_output;  // not filled for the first layer
};

// Examples of one task.
template <class T>
struct Data {
  const T* x;
  const void* y;
  int64_t n;
};

// What an evaluation stores for its gradient and for the R-operator; (n, row) per layer.
template <class T>
struct Tape {
  T* out;     // activations; outputs for the last layer
  T* first;   // derivative of the activations; for the last layer, cross-entropy's probabilities
  T* second;  // second derivative, multiplied by the activation's gradient in backward; null
              // without an R-operator to follow, and not written where it is zero (ReLU)
  T* delta;   // gradient of the pre-activations
};

template <class T>
void forward(const Network& net, const Weights<T>& w, const Data<T>& data, const Tape<T>& tape) {
  const T* from = data.x;
  int64_t from_row = net.layers[0].in;
  for (size_t l = 0; l < net.layers.size(); ++l) {
    const Layer& layer = net.layers[l];
    const int64_t at = data.n * layer.units;
    const T* weight = w.by_input + layer.by_input;
    T* out = tape.out + at;
    multiply<T, 1>(out, data.n, layer.out, {weight + layer.in * layer.row, 0, 1},
                   {{from, from_row, 1, weight, layer.row, layer.in}});
    if (l + 1 < net.layers.size())
      with_activation(layer.activation, [&](auto f) {
        for (int64_t i = 0; i < data.n * layer.row; i += kLanes<T>) {
          const auto c = curve<decltype(f)::value, VectorMath<T>>(load(out + i));
          store(out + i, c.value);
          store(tape.first + at + i, c.first);
          if (decltype(f)::value != Activation::relu && tape.second)
            store(tape.second + at + i, c.second);
        }
      });
    from = out;
    from_row = layer.row;
  }
}

// sums[j] = the sum over the rows of `from`.
template <class T>
void sum_rows(const T* from, int64_t rows, int64_t row, T* sums) {
  for (int64_t j = 0; j < row; j += kLanes<T>) {
    Vec<T> sum = Vec<T>{};
    for (int64_t i = 0; i < rows; ++i) sum += load(from + i * row + j);
    store(sums + j, sum);
  }
}

// to = a * b, element by element.
template <class T>
void scale_by(const T* a, const T* b, int64_t size, T* to) {
  for (int64_t i = 0; i < size; i += kLanes<T>) store(to + i, load(a + i) * load(b + i));
}

// The gradient of the mean loss, from the last layer's delta, into `grad` (by-input layout).
template <class T>
void backward(const Network& net, const Weights<T>& w, const Data<T>& data, const Tape<T>& tape,
              T* grad) {
  for (size_t l = net.layers.size(); l-- > 0;) {
    const Layer& layer = net.layers[l];
    const T* delta = tape.delta + data.n * layer.units;
    T* g = grad + layer.by_input;
    if (layer.bias) sum_rows(delta, data.n, layer.row, g + layer.in * layer.row);
    if (l == 0) {
      multiply<T, 1>(g, layer.in, layer.out, zeros<T>(),
                     {{data.x, 1, layer.in, delta, layer.row, data.n}});
      return;
    }
    const Layer& before = net.layers[l - 1];
    const int64_t at = data.n * before.units;
    multiply<T, 1>(g, layer.in, layer.out, zeros<T>(),
                   {{tape.out + at, 1, before.row, delta, layer.row, data.n}});
    T* d = tape.delta + at;
    multiply<T, 1>(d, data.n, layer.in, zeros<T>(),
                   {{delta, layer.row, 1, w.by_output + layer.by_output, before.row, layer.out}});
    const int64_t size = data.n * before.row;
    if (before.activation != Activation::relu && tape.second)
      scale_by(tape.second + at, d, size, tape.second + at);
    scale_by(d, tape.first + at, size, d);
  }
}

// Tangents of outputs and deltas along a direction; scratch holds one padded layer.
template <class T>
struct Tangent {
  T* out;
  T* delta;
  T* scratch;
};

template <class T>
void r_forward(const Network& net, const Weights<T>& w, const Weights<T>& v, const Data<T>& data,
               const Tape<T>& tape, const Tangent<T>& r) {
  for (size_t l = 0; l < net.layers.size(); ++l) {
    const Layer& layer = net.layers[l];
    const int64_t at = data.n * layer.units;
    const T* direction = v.by_input + layer.by_input;
    const T* bias = direction + layer.in * layer.row;
    T* out = r.out + at;
    if (l == 0) {
      multiply<T, 1>(out, data.n, layer.out, {bias, 0, 1},
                     {{data.x, layer.in, 1, direction, layer.row, layer.in}});
    } else {
      const int64_t from = data.n * net.layers[l - 1].units, row = net.layers[l - 1].row;
      multiply<T, 2>(out, data.n, layer.out, {bias, 0, 1},
                     {{tape.out + from, row, 1, direction, layer.row, layer.in},
                      {r.out + from, row, 1, w.by_input + layer.by_input, layer.row, layer.in}});
    }
    if (l + 1 == net.layers.size()) return;
    const int64_t size = data.n * layer.row;
    if (layer.activation != Activation::relu) scale_by(out, tape.second + at, size, r.delta + at);
    scale_by(out, tape.first + at, size, out);
  }
}

// The Hessian of the mean loss times v, into `product` (by-input layout).
template <class T>
void r_backward(const Network& net, const Weights<T>& w, const Weights<T>& v, const Data<T>& data,
                const Tape<T>& tape, const Tangent<T>& r, T* product) {
  for (size_t l = net.layers.size(); l-- > 0;) {
    const Layer& layer = net.layers[l];
    const T* delta = tape.delta + data.n * layer.units;
    const T* d_tangent = r.delta + data.n * layer.units;
    T* g = product + layer.by_input;
    if (layer.bias) sum_rows(d_tangent, data.n, layer.row, g + layer.in * layer.row);
    if (l == 0) {
      multiply<T, 1>(g, layer.in, layer.out, zeros<T>(),
                     {{data.x, 1, layer.in, d_tangent, layer.row, data.n}});
      return;
    }
    const Layer& before = net.layers[l - 1];
    const int64_t at = data.n * before.units;
    multiply<T, 2>(g, layer.in, layer.out, zeros<T>(),
                   {{tape.out + at, 1, before.row, d_tangent, layer.row, data.n},
                    {r.out + at, 1, before.row, delta, layer.row, data.n}});
    // For these, r_forward wrote its part to r.delta.
    const bool curved = before.activation != Activation::relu;
    T* sum = curved ? r.scratch : r.delta + at;
    multiply<T, 2>(sum, data.n, layer.in, zeros<T>(),
                   {{d_tangent, layer.row, 1, w.by_output + layer.by_output, before.row, layer.out},
                    {delta, layer.row, 1, v.by_output + layer.by_output, before.row, layer.out}});
    const int64_t size = data.n * before.row;
    scale_by(sum, tape.first + at, size, sum);
    if (curved)
      for (int64_t i = at; i < at + size; i += kLanes<T>)
        store(r.delta + i, load(r.delta + i) + load(sum + i - at));
  }
}

}  // namespace mlp
}  // namespace fastmeta::cpu::FM_ISA
