// Mean squared error and cross-entropy, both as means: value, gradient, and its motion.
#pragma once

#include "cpu/mlp_network.h"

namespace fastmeta::cpu::FM_ISA {
namespace mlp {

// 1 / the number of examples that count.
template <class T>
T example_weight(const Network& net, const Data<T>& data) {
  if (net.loss == MlpLoss::mse) return T(1) / static_cast<T>(data.n * net.layers.back().out);
  const int64_t* y = static_cast<const int64_t*>(data.y);
  int64_t count = 0;
  for (int64_t i = 0; i < data.n; ++i) count += y[i] != kIgnoredTarget;
  return T(1) / static_cast<T>(count);
}

// Softmax of one row of outputs, and log of the sum of its exponentials.
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

// The mean loss; leaves its gradient in the last delta.
template <class T>
T loss(const Network& net, const Data<T>& data, const Tape<T>& tape) {
  const Layer& last = net.layers.back();
  const T share = example_weight(net, data);
  double total = 0;
  for (int64_t i = 0; i < data.n; ++i) {
    const int64_t at = data.n * last.units + i * last.row;
    const T* z = tape.out + at;
    T* delta = tape.delta + at;
    if (net.loss == MlpLoss::mse) {
      const T* y = static_cast<const T*>(data.y) + i * last.out;
      for (int64_t j = 0; j < last.out; ++j) {
        const T error = z[j] - y[j];
        total += static_cast<double>(error) * static_cast<double>(error);
        delta[j] = 2 * share * error;
      }
      continue;
    }
    const int64_t y = static_cast<const int64_t*>(data.y)[i];
    T* p = tape.slope + at;
    const double log_sum = softmax(z, last.out, p);
    const bool counts = y != kIgnoredTarget;
    if (counts) total += log_sum - static_cast<double>(z[y]);
    for (int64_t j = 0; j < last.out; ++j)
      delta[j] = counts ? share * (p[j] - static_cast<T>(j == y)) : T(0);
  }
  return static_cast<T>(total * static_cast<double>(share));
}

// How the last delta moves, from how the outputs do.
template <class T>
void r_loss(const Network& net, const Data<T>& data, const Tape<T>& tape, const Motion<T>& r) {
  const Layer& last = net.layers.back();
  const T share = example_weight(net, data);
  for (int64_t i = 0; i < data.n; ++i) {
    const int64_t at = data.n * last.units + i * last.row;
    const T* move = r.out + at;
    T* delta = r.delta + at;
    if (net.loss == MlpLoss::mse) {
      for (int64_t j = 0; j < last.out; ++j) delta[j] = 2 * share * move[j];
      continue;
    }
    const bool counts = static_cast<const int64_t*>(data.y)[i] != kIgnoredTarget;
    const T* p = tape.slope + at;
    T mean = 0;
    for (int64_t j = 0; j < last.out; ++j) mean += p[j] * move[j];
    for (int64_t j = 0; j < last.out; ++j)
      delta[j] = counts ? share * p[j] * (move[j] - mean) : T(0);
  }
}

}  // namespace mlp
}  // namespace fastmeta::cpu::FM_ISA
