// Cross entropy of rows of logits: a block per row.
#pragma once

#include "cuda/common.cuh"
#include "cuda/launch.h"
#include "fastmeta/cross_entropy.h"

namespace fastmeta::cuda {

// A sum over the block's threads, valid in all of them.
__device__ inline double shared_sum(double x) {
  __shared__ double all;
  const double sum = block_sum(x);
  if (threadIdx.x == 0) all = sum;
  __syncthreads();
  return all;
}

// The maximum over the block's threads, valid in all of them; NaN is left out.
__device__ inline double shared_max(double x) {
  __shared__ double warps[kThreads / kWarp];
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const double other = __shfl_xor_sync(kFullWarp, x, offset);
    x = other > x ? other : x;
  }
  __syncthreads();  // the reads of the previous call are done
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = x;
  __syncthreads();
  for (int w = 0; w < kThreads / kWarp; ++w) x = warps[w] > x ? warps[w] : x;
  return x;
}

// One row of the logits, and of what is shaped like them.
template <class T>
struct LogitRow {
  using A = Acc<T>;
  const CrossEntropyInput& in;
  int64_t row = blockIdx.x;
  int64_t first = row * in.classes;
  int64_t y = in.target[row];
  A factor = cross_entropy_factor<A>(in, row);
  A uniform = static_cast<A>(in.smoothing / static_cast<double>(in.classes));
  A sharp = static_cast<A>(1 - in.smoothing);

  __device__ explicit LogitRow(const CrossEntropyInput& in_) : in(in_) {}
  __device__ A& of(const void* values) const {
    return static_cast<A*>(const_cast<void*>(values))[row];
  }
  __device__ A at(const void* logits, int64_t c) const {
    return widen(static_cast<const T*>(logits)[first + c]);
  }
  __device__ void put(void* logits, int64_t c, A x) const {
    static_cast<T*>(logits)[first + c] = narrow<T>(factor == 1 ? x : factor);
  }
  __device__ A probability(int64_t c) const { return exp(at(in.z, c) - of(in.logsumexp)); }
  __device__ A target(int64_t c) const { return c == y ? uniform + sharp : uniform; }
  template <class Body>
  __device__ void each(const Body& body) const {
    for (int64_t c = threadIdx.x; c < in.classes; c += kThreads) body(c);
  }
};

template <class T>
__global__ void cross_entropy_forward_kernel(CrossEntropyForwardArgs args) {
  using A = Acc<T>;
  const CrossEntropyInput& in = args.in;
  const LogitRow<T> row(in);
  double top = -HUGE_VAL, sum = 0, along = 0;
  row.each([&](int64_t c) {
    const double z = static_cast<double>(row.at(in.z, c));
    top = z > top ? z : top;
    along += static_cast<double>(row.target(c)) * z;
  });
  const A shift = static_cast<A>(shared_max(top));
  row.each([&](int64_t c) { sum += static_cast<double>(exp(row.at(in.z, c) - shift)); });
  const double logsumexp = static_cast<double>(shift) + log(shared_sum(sum));
  along = shared_sum(along);
  if (threadIdx.x > 0) return;
  row.of(in.logsumexp) = static_cast<A>(logsumexp);
  row.of(args.loss) = row.factor == 1 ? static_cast<A>(logsumexp - along) : row.factor;
}

template <class T>
__global__ void cross_entropy_backward_kernel(CrossEntropyBackwardArgs args) {
  const LogitRow<T> row(args.in);
  const Acc<T> g = row.of(args.dloss);
  row.each([&](int64_t c) { row.put(args.dz, c, g * (row.probability(c) - row.target(c))); });
}

template <class T>
__global__ void cross_entropy_second_kernel(CrossEntropySecondArgs args) {
  using A = Acc<T>;
  const LogitRow<T> row(args.in);
  double sum = 0, along = 0;
  row.each([&](int64_t c) {
    const A tz = row.at(args.tz, c);
    sum += static_cast<double>(row.probability(c) * tz);
    along += static_cast<double>(row.target(c) * tz);
  });
  const double total = shared_sum(sum);
  along = shared_sum(along);
  if (args.tloss && threadIdx.x == 0)
    row.of(args.tloss) = row.factor == 1 ? static_cast<A>(total - along) : row.factor;
  if (!args.dloss) return;
  const A mean = static_cast<A>(total), g = row.of(args.dloss);
  const A tg = args.tdloss ? row.of(args.tdloss) : A(0);
  row.each([&](int64_t c) {
    const A p = row.probability(c);
    row.put(args.dz, c, g * p * (row.at(args.tz, c) - mean) + tg * (p - row.target(c)));
  });
}

template <class Launch>
void launch_cross_entropy_forward(const CrossEntropyForwardArgs& args, const Launch& launch) {
  const auto rows = static_cast<unsigned>(args.in.rows);
  if (rows == 0) return;
  dispatch(args.in.dtype, [&](auto zero) {
    launch(cross_entropy_forward_kernel<decltype(zero)>, rows, kThreads, args);
  });
}

template <class Launch>
void launch_cross_entropy_backward(const CrossEntropyBackwardArgs& args, const Launch& launch) {
  const auto rows = static_cast<unsigned>(args.in.rows);
  if (rows == 0) return;
  dispatch(args.in.dtype, [&](auto zero) {
    launch(cross_entropy_backward_kernel<decltype(zero)>, rows, kThreads, args);
  });
}

template <class Launch>
void launch_cross_entropy_second(const CrossEntropySecondArgs& args, const Launch& launch) {
  const auto rows = static_cast<unsigned>(args.in.rows);
  if (rows == 0) return;
  dispatch(args.in.dtype, [&](auto zero) {
    launch(cross_entropy_second_kernel<decltype(zero)>, rows, kThreads, args);
  });
}

}  // namespace fastmeta::cuda
