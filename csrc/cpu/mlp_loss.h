// Mean squared error and mean cross-entropy: value, gradient, and the tangent of the gradient.
#pragma once

#include "cpu/mlp_network.h"

namespace fastmeta::cpu::FM_ISA {
namespace mlp {

// 1 / the number of examples (for mse, of elements) in the mean.
template <class T>
T inv_example_count(const Network& net, const Data<T>& data) {
  if (net.loss == Loss::mse) return T(1) / static_cast<T>(data.n * net.layers.back().out);
  const int64_t* y = static_cast<const int64_t*>(data.y);
  int64_t count = 0;
  for (int64_t i = 0; i < data.n; ++i) count += y[i] != kIgnoredTarget;
  return T(1) / static_cast<T>(count);
}

// Softmax of one row of outputs; returns its log-sum-exp.
template <class T>
double softmax(const T* z, int64_t classes, T* p) {
  T top = z[0];
  for (int64_t j = 1; j < classes; ++j) top = z[j] > top ? z[j] : top;
  for (int64_t j = 0; j < padded<T>(classes); j += kLanes<T>)
    store(p + j, exp_of<T>(load(z + j) - top));
  T sum = 0;
  for (int64_t j = 0; j < classes; ++j) sum += p[j];
  for (int64_t j = 0; j < classes; ++j) p[j] /= sum;
  for (int64_t j = classes; j < padded<T>(classes); ++j) p[j] = 0;
  return static_cast<double>(top) + std::log(static_cast<double>(sum));
}

// The mean loss; writes its gradient to the last delta.
template <class T>
T loss(const Network& net, const Data<T>& data, const Tape<T>& tape) {
  const Layer& last = net.layers.back();
  const T inv_count = inv_example_count(net, data);
  double total = 0;
  for (int64_t i = 0; i < data.n; ++i) {
    const int64_t at = data.n * last.units + i * last.row;
    const T* z = tape.out + at;
    T* delta = tape.delta + at;
    if (net.loss == Loss::mse) {
      const T* y = static_cast<const T*>(data.y) + i * last.out;
      for (int64_t j = 0; j < last.out; ++j) {
        const T error = z[j] - y[j];
        total += static_cast<double>(error) * static_cast<double>(error);
        delta[j] = 2 * inv_count * error;
      }
      continue;
    }
    const int64_t y = static_cast<const int64_t*>(data.y)[i];
    T* p = tape.first + at;
    const double log_sum = softmax(z, last.out, p);
    const bool counts = y != kIgnoredTarget;
    if (counts) total += log_sum - static_cast<double>(z[y]);
    for (int64_t j = 0; j < last.out; ++j)
      delta[j] = counts ? inv_count * (p[j] - static_cast<T>(j == y)) : T(0);
  }
  return static_cast<T>(total * static_cast<double>(inv_count));
}

// The tangent of the last delta from that of the outputs.
template <class T>
void r_loss(const Network& net, const Data<T>& data, const Tape<T>& tape, const Tangent<T>& r) {
  const Layer& last = net.layers.back();
  const T inv_count = inv_example_count(net, data);
  for (int64_t i = 0; i < data.n; ++i) {
    const int64_t at = data.n * last.units + i * last.row;
    const T* tangent = r.out + at;
    T* delta = r.delta + at;
    if (net.loss == Loss::mse) {
      for (int64_t j = 0; j < last.out; ++j) delta[j] = 2 * inv_count * tangent[j];
      continue;
    }
    const bool counts = static_cast<const int64_t*>(data.y)[i] != kIgnoredTarget;
    const T* p = tape.first + at;
    T mean = 0;
    for (int64_t j = 0; j < last.out; ++j) mean += p[j] * tangent[j];
    for (int64_t j = 0; j < last.out; ++j)
      delta[j] = counts ? inv_count * p[j] * (tangent[j] - mean) : T(0);
  }
}

}  // namespace mlp
}  // namespace fastmeta::cpu::FM_ISA
