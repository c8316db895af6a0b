// Layer normalisation and RMS normalisation: a block per row, then blocks of 32 columns and a chunk
// of rows for the gradients of weights, whose sums a last kernel adds up in a fixed order.
#pragma once

#include "cuda/common.cuh"
#include "cuda/launch.h"
#include "fastmeta/row_norm.h"

namespace fastmeta::cuda {

constexpr int kRowNormColumns = 32;  // of a block of partial sums
constexpr int kRowNormLines = 8;     // of its threads

// The mean over the columns of a row of the sums of a block's threads, valid in all of them.
__device__ inline double row_mean(double x, int64_t width) {
  __shared__ double mean;
  const double sum = block_sum(x);
  if (threadIdx.x == 0) mean = sum / static_cast<double>(width);
  __syncthreads();
  return mean;
}

// An element of (groups, width) weights.
template <class T>
__device__ Acc<T> weight_at(const RowNormInput& in, const void* weight, int64_t k) {
  return in.weight_dtype == in.dtype ? widen(static_cast<const T*>(weight)[k])
                                     : static_cast<const Acc<T>*>(weight)[k];
}

// A row and its statistics.
template <class T>
struct NormRow {
  using A = Acc<T>;
  const RowNormInput& in;
  int64_t row, group, first, weights;
  A *mean, *scale;

  __device__ NormRow(const RowNormInput& in_, int64_t row_)
      : in(in_),
        row(row_),
        group(row_ / in_.rows),
        first(row_ * in_.width),
        weights(group * in_.width),
        mean(static_cast<A*>(in_.stats) + group * 2 * in_.rows + row_ % in_.rows),
        scale(mean + in_.rows) {}
  __device__ A at(const void* matrix, int64_t c) const {
    return widen(static_cast<const T*>(matrix)[first + c]);
  }
  __device__ void put(void* matrix, int64_t c, A x) const {
    static_cast<T*>(matrix)[first + c] = narrow<T>(x);
  }
  __device__ A weight(const void* of, int64_t c) const { return weight_at<T>(in, of, weights + c); }
  __device__ A h(int64_t c) const { return (at(in.x, c) - *mean) * *scale; }
  template <class Body>
  __device__ void each(const Body& body) const {
    for (int64_t c = threadIdx.x; c < in.width; c += kThreads) body(c);
  }
};

template <class T>
__global__ void row_norm_forward_kernel(RowNormForwardArgs args) {
  using A = Acc<T>;
  const RowNormInput& in = args.in;
  const NormRow<T> row(in, blockIdx.x);
  double sum = 0, squares = 0;
  if (in.centred) row.each([&](int64_t c) { sum += static_cast<double>(row.at(in.x, c)); });
  const A mean = static_cast<A>(row_mean(sum, in.width));
  row.each([&](int64_t c) {
    const double d = static_cast<double>(row.at(in.x, c) - mean);
    squares += d * d;
  });
  const A r = static_cast<A>(1 / sqrt(row_mean(squares, in.width) + args.eps));
  if (threadIdx.x == 0) {
    *row.mean = mean;
    *row.scale = r;
  }
  row.each([&](int64_t c) {
    const A h = (row.at(in.x, c) - mean) * r;
    row.put(args.y, c, h * row.weight(in.weight, c) + row.weight(args.bias, c));
  });
}

template <class T>
__global__ void row_norm_backward_kernel(RowNormBackwardArgs args) {
  using A = Acc<T>;
  const RowNormInput& in = args.in;
  const NormRow<T> row(in, blockIdx.x);
  double sum_g = 0, sum_gh = 0;
  row.each([&](int64_t c) {
    const A g = row.at(args.dy, c) * row.weight(in.weight, c);
    sum_g += static_cast<double>(g);
    sum_gh += static_cast<double>(g * row.h(c));
  });
  const A g = in.centred ? static_cast<A>(row_mean(sum_g, in.width)) : A(0);
  const A gh = static_cast<A>(row_mean(sum_gh, in.width));
  row.each([&](int64_t c) {
    const A own = row.at(args.dy, c) * row.weight(in.weight, c);
    row.put(args.dx, c, *row.scale * (own - g - row.h(c) * gh));
  });
}

// The means of x. and h x. of a row, for the sums over columns.
template <class T>
__device__ Acc<T>* direction_means(const RowNormSecondArgs& args, int64_t row) {
  const RowNormInput& in = args.in;
  const int64_t sums = row_norm_chunks(in.rows) * 2 * row_norm_padded(in.width);
  return static_cast<Acc<T>*>(args.scratch) + in.groups * sums + 2 * row;
}

template <class T>
__global__ void row_norm_second_kernel(RowNormSecondArgs args) {
  using A = Acc<T>;
  const RowNormInput& in = args.in;
  const NormRow<T> row(in, blockIdx.x);
  const auto tg = [&](int64_t c) {
    const A change = args.tdy ? row.at(args.tdy, c) * row.weight(in.weight, c) : A(0);
    return change + row.at(args.dy, c) * row.weight(args.tweight, c);
  };
  double sums[7] = {};
  row.each([&](int64_t c) {
    const A h = row.h(c), t = row.at(args.tx, c);
    sums[0] += static_cast<double>(t);
    sums[1] += static_cast<double>(t * h);
    if (!args.dy) return;
    const A g = row.at(args.dy, c) * row.weight(in.weight, c);
    sums[2] += static_cast<double>(g);
    sums[3] += static_cast<double>(g * h);
    sums[4] += static_cast<double>(g * t);
    sums[5] += static_cast<double>(tg(c));
    sums[6] += static_cast<double>(tg(c) * h);
  });
  A s[7] = {};
  for (int k = 0; k < (args.dy ? 7 : 2); ++k) s[k] = static_cast<A>(row_mean(sums[k], in.width));
  RowNormMeans<A> means{*row.scale, s[0], s[1], s[2], s[3], s[4], s[5], s[6]};
  if (!in.centred) means.uncentre();
  if (args.dy && threadIdx.x == 0) {
    A* to = direction_means<T>(args, row.row);
    to[0] = means.x;
    to[1] = means.hx;
  }
  row.each([&](int64_t c) {
    const A h = row.h(c), w = row.weight(in.weight, c), th = means.th(row.at(args.tx, c), h);
    row.put(args.ty, c, th * w + (h * row.weight(args.tweight, c) + row.weight(args.tbias, c)));
    if (args.dy) row.put(args.dx, c, means.tdx(row.at(args.dy, c) * w, tg(c), h, th));
  });
}

// Partial sums of a chunk of rows, to (groups * chunks, 2, padded width). add(row, c, sums) adds an
// element to the sums of dweight and dbias. Grid: (groups * chunks, tiles of columns).
template <class T, class Add>
__device__ void column_sums(const RowNormInput& in, void* scratch, const Add& add) {
  using A = Acc<T>;
  __shared__ A shared[kRowNormLines][2][kRowNormColumns];
  const int64_t chunks = row_norm_chunks(in.rows), size = row_norm_chunk(in.rows);
  const int64_t group = blockIdx.x / chunks, begin = blockIdx.x % chunks * size;
  const int64_t end = begin + size < in.rows ? begin + size : in.rows;
  const int64_t c = static_cast<int64_t>(blockIdx.y) * kRowNormColumns + threadIdx.x;
  A sums[2] = {};
  if (c < in.width)
    for (int64_t i = begin + threadIdx.y; i < end; i += kRowNormLines)
      add(NormRow<T>(in, group * in.rows + i), c, sums);
  for (int k = 0; k < 2; ++k) shared[threadIdx.y][k][threadIdx.x] = sums[k];
  __syncthreads();
  if (threadIdx.y >= 2 || c >= in.width) return;
  A total = 0;
  for (int line = 0; line < kRowNormLines; ++line) total += shared[line][threadIdx.y][threadIdx.x];
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * 2 + threadIdx.y);
  static_cast<A*>(scratch)[at * row_norm_padded(in.width) + c] = total;
}

template <class T>
__global__ void row_norm_backward_columns_kernel(RowNormBackwardArgs args) {
  using A = Acc<T>;
  column_sums<T>(args.in, args.scratch, [&](const NormRow<T>& row, int64_t c, A(&sums)[2]) {
    const A dy = row.at(args.dy, c);
    sums[0] += dy * row.h(c);
    sums[1] += dy;
  });
}

template <class T>
__global__ void row_norm_second_columns_kernel(RowNormSecondArgs args) {
  using A = Acc<T>;
  column_sums<T>(args.in, args.scratch, [&](const NormRow<T>& row, int64_t c, A(&sums)[2]) {
    const A* means = direction_means<T>(args, row.row);
    const A h = row.h(c);
    const A th = *row.scale * (row.at(args.tx, c) - means[0] - h * means[1]);
    sums[0] += row.at(args.dy, c) * th;
    if (!args.tdy) return;
    const A tdy = row.at(args.tdy, c);
    sums[0] += tdy * h;
    sums[1] += tdy;
  });
}

template <class T>
__global__ void row_norm_finish_kernel(RowNormInput in, const void* scratch, void* dweight,
                                       void* dbias) {
  using A = Acc<T>;
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (k >= in.groups * in.width) return;
  const int64_t chunks = row_norm_chunks(in.rows), padded = row_norm_padded(in.width);
  const A* from =
      static_cast<const A*>(scratch) + k / in.width * chunks * 2 * padded + k % in.width;
  double sums[2] = {};
  for (int64_t chunk = 0; chunk < chunks; ++chunk)
    for (int s = 0; s < 2; ++s) sums[s] += static_cast<double>(from[(chunk * 2 + s) * padded]);
  void* out[2] = {dweight, dbias};
  for (int s = 0; s < 2; ++s) {
    const A sum = static_cast<A>(sums[s]);
    if (in.weight_dtype == in.dtype)
      static_cast<T*>(out[s])[k] = narrow<T>(sum);
    else
      static_cast<A*>(out[s])[k] = sum;
  }
}

inline dim3 row_norm_columns_grid(const RowNormInput& in) {
  return dim3(static_cast<unsigned>(in.groups * row_norm_chunks(in.rows)),
              blocks_for(in.width, kRowNormColumns));
}

template <class T, class Launch>
void launch_row_norm_finish(const RowNormInput& in, const void* scratch, void* dweight, void* dbias,
                            const Launch& launch) {
  if (in.groups > 0)
    launch(row_norm_finish_kernel<T>, blocks_for(in.groups * in.width, kThreads), kThreads, in,
           scratch, dweight, dbias);
}

template <class Launch>
void launch_row_norm_forward(const RowNormForwardArgs& args, const Launch& launch) {
  const auto rows = static_cast<unsigned>(args.in.groups * args.in.rows);
  if (rows == 0) return;
  dispatch(args.in.dtype, [&](auto zero) {
    launch(row_norm_forward_kernel<decltype(zero)>, rows, kThreads, args);
  });
}

template <class Launch>
void launch_row_norm_backward(const RowNormBackwardArgs& args, const Launch& launch) {
  const RowNormInput& in = args.in;
  const auto rows = static_cast<unsigned>(in.groups * in.rows);
  dispatch(in.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (rows > 0) {
      launch(row_norm_backward_kernel<T>, rows, kThreads, args);
      launch(row_norm_backward_columns_kernel<T>, row_norm_columns_grid(in),
             dim3(kRowNormColumns, kRowNormLines), args);
    }
    launch_row_norm_finish<T>(in, args.scratch, args.dweight, args.dbias, launch);
  });
}

template <class Launch>
void launch_row_norm_second(const RowNormSecondArgs& args, const Launch& launch) {
  const RowNormInput& in = args.in;
  const auto rows = static_cast<unsigned>(in.groups * in.rows);
  dispatch(in.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (rows > 0) launch(row_norm_second_kernel<T>, rows, kThreads, args);
    if (!args.dweight) return;
    if (rows > 0)
      launch(row_norm_second_columns_kernel<T>, row_norm_columns_grid(in),
             dim3(kRowNormColumns, kRowNormLines), args);
    launch_row_norm_finish<T>(in, args.scratch, args.dweight, args.dbias, launch);
  });
}

}  // namespace fastmeta::cuda
