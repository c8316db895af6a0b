// row_similarity and mean_similarity kernels: partial sums of one chunk, then their sum.
#pragma once

#include "cuda/chunk_sums.cuh"
#include "cuda/lanes.cuh"
#include "cuda/launch.h"
#include "fastmeta/similarity.h"

namespace fastmeta::cuda {

template <class A>
struct RowSums {
  A dot, xx, yy;
};

// Adds the thread's columns in [begin, end).
template <bool kWhole, class T>
__device__ inline void add_columns(const T* x, const T* y, int64_t begin, int64_t end,
                                   RowSums<Acc<T>>& sums) {
  FM_UNROLL(4)
  for (int64_t p = begin + threadIdx.x * kLanes<T>; p < end; p += kThreads * kLanes<T>) {
    Acc<T> u[kLanes<T>], v[kLanes<T>];
    load_lanes<kWhole>(x + p, end - p, u);
    load_lanes<kWhole>(y + p, end - p, v);
    for (int k = 0; k < kLanes<T>; ++k) {
      sums.dot += u[k] * v[k];
      sums.xx += u[k] * u[k];
      sums.yy += v[k] * v[k];
    }
  }
}

// grid (chunks, T), kThreads threads. out is (T, all_segments, 3), this launch's segments from
// `segment`.
template <class T>
__global__ void row_similarity_kernel(Matrix a, Matrix b, SegmentMap map, Partials partial,
                                      int64_t segment, int64_t all_segments, Acc<T>* out) {
  const SegmentMap::Range range = map.range(blockIdx.x);
  const int64_t row = blockIdx.y;
  const T* x = static_cast<const T*>(a.data) + row * a.stride;
  const T* y = static_cast<const T*>(b.data) + row * b.stride;
  constexpr int64_t kPass = kThreads * kLanes<T>;
  const bool aligned = aligned16(x + range.begin) && aligned16(y + range.begin);
  const int64_t whole = aligned ? (range.end - range.begin) / kPass * kPass : 0;
  RowSums<Acc<T>> sums{};
  add_columns<true>(x, y, range.begin, range.begin + whole, sums);
  add_columns<false>(x, y, range.begin + whole, range.end, sums);
  const double totals[3] = {block_sum(sums.dot), block_sum(sums.xx), block_sum(sums.yy)};
  if (threadIdx.x == 0)
    for (int m = 0; m < 3; ++m) partial.sums[(blockIdx.x * a.rows + row) * 3 + m] = totals[m];
  out += (row * all_segments + segment + range.segment) * 3;
  sum_chunks(
      map, range.segment, partial.sums, a.rows * 3, 3, partial.tickets,
      [&](int m) { return row * 3 + m; },
      [&](int m, double total) { out[m] = static_cast<Acc<T>>(total); });
}

// Adds one pass over kThreads * kLanes columns, where `data` points to the thread's: sums all rows,
// then multiplies the rows from `row0` on by the sum. Every thread of the block must call it, since
// warp sums need all lanes.
template <bool kWhole, class T>
__device__ inline void add_pass(const T* data, Matrix g, int64_t left, int64_t row0, int rows,
                                double (*sums)[2]) {
  using A = Acc<T>;
  A x[kLanes<T>], s[kLanes<T>] = {};
  FM_UNROLL(8)
  for (int64_t i = 0; i < g.rows; ++i) {
    load_lanes<kWhole>(data + i * g.stride, left, x);
    for (int k = 0; k < kLanes<T>; ++k) s[k] += x[k];
  }
  FM_UNROLL(4)
  for (int r = 0; r < rows; ++r) {
    load_lanes<kWhole>(data + (row0 + r) * g.stride, left, x);
    A dot = 0, own = 0;
    for (int k = 0; k < kLanes<T>; ++k) {
      dot += x[k] * s[k];
      own += x[k] * x[k];
    }
    const double dots = warp_sum(dot), owns = warp_sum(own);
    if (threadIdx.x % kWarp == 0) {
      sums[r][0] += dots;
      sums[r][1] += owns;
    }
  }
}

// grid (chunks, ceil(T / kMeanRows)), kThreads threads.
template <class T>
__global__ void mean_similarity_kernel(Matrix g, SegmentMap map, Partials partial, Acc<T>* out) {
  __shared__ double sums[kThreads / kWarp][kMeanRows][2];
  const SegmentMap::Range range = map.range(blockIdx.x);
  const int warp = threadIdx.x / kWarp;
  const int64_t row0 = static_cast<int64_t>(blockIdx.y) * kMeanRows;
  const int rows = g.rows - row0 < kMeanRows ? static_cast<int>(g.rows - row0) : kMeanRows;
  for (int k = threadIdx.x; k < kThreads / kWarp * kMeanRows * 2; k += kThreads)
    (&sums[0][0][0])[k] = 0;
  __syncthreads();
  constexpr int64_t kPass = kThreads * kLanes<T>;
  const T* data = static_cast<const T*>(g.data);
  const bool aligned = rows_aligned(data + range.begin, g.stride);
  for (int64_t p = range.begin; p < range.end; p += kPass) {
    const int64_t c = p + threadIdx.x * kLanes<T>;
    if (aligned && p + kPass <= range.end)
      add_pass<true>(data + c, g, range.end - c, row0, rows, sums[warp]);
    else
      add_pass<false>(data + c, g, range.end - c, row0, rows, sums[warp]);
  }
  __syncthreads();
  for (int k = threadIdx.x; k < rows * 2; k += kThreads) {
    double total = 0;
    for (int w = 0; w < kThreads / kWarp; ++w) total += sums[w][k / 2][k % 2];
    partial.sums[(blockIdx.x * g.rows + row0) * 2 + k] = total;
  }
  sum_chunks(
      map, 0, partial.sums, g.rows * 2, rows * 2, partial.tickets,
      [&](int k) { return row0 * 2 + k; },
      [&](int k, double total) { out[row0 * 2 + k] = static_cast<Acc<T>>(total); });
}

// grid.y is the row, at most 65,535: the op checks the number of tasks.
template <class Launch>
void launch_row_similarity(const RowSimilarityArgs& args, const Launch& launch) {
  const int64_t tasks = args.a.rows;
  if (tasks == 0) return;
  dispatch(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    for_each_segment_group(
        args.segments, args.a.cols, args.partial, tasks * 3, tasks, launch,
        [&](const SegmentMap& map, int64_t segment, const Partials& partial) {
          const dim3 grid(map.blocks.first[map.blocks.count], static_cast<unsigned>(tasks));
          launch(row_similarity_kernel<T>, grid, kThreads, args.a, args.b, map, partial, segment,
                 args.segments.count, static_cast<Acc<T>*>(args.out));
        });
  });
}

template <class Launch>
void launch_mean_similarity(const MeanSimilarityArgs& args, const Launch& launch) {
  const int64_t tasks = args.g.rows, grid_rows = count_mean_grid_rows(tasks);
  if (tasks == 0) return;
  const int64_t bounds[2] = {0, args.g.cols};
  dispatch(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    for_each_segment_group({bounds, 1}, args.g.cols, args.partial, tasks * 2, grid_rows, launch,
                           [&](const SegmentMap& map, int64_t, const Partials& partial) {
                             const dim3 grid(map.blocks.first[1], static_cast<unsigned>(grid_rows));
                             launch(mean_similarity_kernel<T>, grid, kThreads, args.g, map, partial,
                                    static_cast<Acc<T>*>(args.out));
                           });
  });
}

}  // namespace fastmeta::cuda
