// Mean squared error and mean cross-entropy by a block of threads: value, gradient, and the tangent
// of the gradient (see cpu/mlp_loss.h).
#pragma once

#include "cuda/mlp_network.cuh"

namespace fastmeta::cuda {

// 1 / the number of examples (for mse, of elements) in the mean.
template <class T>
__device__ T inv_example_count(Loss loss, const void* y, int n, int out) {
  if (loss == Loss::mse) return T(1) / static_cast<T>(n * out);
  int count = 0;
  for (int i = 0; i < n; ++i) count += static_cast<const int64_t*>(y)[i] != kIgnoredTarget;
  return T(1) / static_cast<T>(count);
}

// Softmax of one row of outputs; returns its log-sum-exp.
template <class T>
__device__ double softmax(const T* z, int classes, T* p) {
  T top = z[0], sum = 0;
  for (int j = 1; j < classes; ++j) top = z[j] > top ? z[j] : top;
  for (int j = 0; j < classes; ++j) sum += p[j] = std::exp(z[j] - top);
  for (int j = 0; j < classes; ++j) p[j] /= sum;
  return static_cast<double>(top) + std::log(static_cast<double>(sum));
}

// The loss of one example, and its part of the gradient. An invalid class yields NaN: an error
// would require a synchronisation with the GPU.
template <class T>
__device__ double cross_entropy(const T* z, int64_t y, int classes, T inv_count, T* p, T* delta) {
  const double log_sum = softmax(z, classes, p);
  const bool counts = y != kIgnoredTarget, known = y >= 0 && y < classes;
  if (counts && !known) inv_count = static_cast<T>(NAN);
  for (int j = 0; j < classes; ++j)
    delta[j] = counts ? inv_count * (p[j] - static_cast<T>(j == y)) : T(0);
  if (!counts) return 0;
  return known ? log_sum - static_cast<double>(z[y]) : static_cast<double>(inv_count);
}

// The mean loss, valid in thread 0; writes its gradient to the last delta.
template <class T>
__device__ T loss(Loss kind, const MlpPlan& net, const Data<T>& data, const Tape<T>& tape) {
  const MlpPlanLayer& last = net.layers[net.count - 1];
  const int at = data.n * last.units, out = last.out;
  const T* z = tape.out + at;
  T* delta = tape.delta + at;
  double total = 0;
  if (kind == Loss::mse) {
    for (int k = threadIdx.x; k < data.n * out; k += kThreads) {
      const T error = z[k] - static_cast<const T*>(data.y)[k];
      total += static_cast<double>(error) * static_cast<double>(error);
      delta[k] = 2 * data.inv_count * error;
    }
  } else {
    for (int i = threadIdx.x; i < data.n; i += kThreads)
      total += cross_entropy(z + i * out, static_cast<const int64_t*>(data.y)[i], out,
                             data.inv_count, tape.first + at + i * out, delta + i * out);
  }
  total = block_sum(total);  // its barriers also order the deltas
  return static_cast<T>(total * static_cast<double>(data.inv_count));
}

// The tangent of the last delta from that of the outputs.
template <class T>
__device__ void r_loss(Loss kind, const MlpPlan& net, const Data<T>& data, const Tape<T>& tape,
                       const Tape<T>& tangent) {
  const MlpPlanLayer& last = net.layers[net.count - 1];
  const int at = data.n * last.units, out = last.out;
  if (kind == Loss::mse) {
    for (int k = at + threadIdx.x; k < at + data.n * out; k += kThreads)
      tangent.delta[k] = 2 * data.inv_count * tangent.out[k];
  } else {
    for (int i = threadIdx.x; i < data.n; i += kThreads) {
      const bool counts = static_cast<const int64_t*>(data.y)[i] != kIgnoredTarget;
      const T *p = tape.first + at + i * out, *dz = tangent.out + at + i * out;
      T mean = 0;
      for (int j = 0; j < out; ++j) mean += p[j] * dz[j];
      for (int j = 0; j < out; ++j)
        tangent.delta[at + i * out + j] = counts ? data.inv_count * p[j] * (dz[j] - mean) : T(0);
    }
  }
  __syncthreads();
}

}  // namespace fastmeta::cuda
