// gram kernels: partial sums of one chunk for one 32 x 32 tile of pairs, then their sum.
#pragma once

#include "cuda/common.cuh"
#include "cuda/launch.h"
#include "fastmeta/gram.h"

namespace fastmeta::cuda {

constexpr int kGramTile = 32;             // rows of a tile, and columns staged at a time
constexpr int kGramSide = kGramTile / 2;  // threads a side; each holds 2 x 2 pairs

// The k-th tile of the lower triangle, row by row.
__device__ inline void lower_tile(int k, int& row, int& col) {
  row = 0;
  while (k > row) k -= ++row;
  col = k;
}

template <class T>
__device__ inline void stage_rows(Matrix g, int64_t row0, int64_t col0, int64_t end,
                                  Acc<T> (&tile)[kGramTile][kGramTile + 1]) {
  for (int k = threadIdx.x; k < kGramTile * kGramTile; k += kThreads) {
    const int r = k / kGramTile, c = k % kGramTile;
    const bool inside = row0 + r < g.rows && col0 + c < end;
    tile[r][c] =
        inside ? widen(static_cast<const T*>(g.data)[(row0 + r) * g.stride + col0 + c]) : Acc<T>(0);
  }
}

// grid (chunks, tiles), kThreads threads. partial is (chunks, T, T), lower triangle filled.
template <class T>
__global__ void gram_partial_kernel(Matrix g, SegmentMap map, double* partial) {
  using A = Acc<T>;
  __shared__ A left[kGramTile][kGramTile + 1];
  __shared__ A right[kGramTile][kGramTile + 1];
  int tile_row, tile_col;
  lower_tile(blockIdx.y, tile_row, tile_col);
  const SegmentMap::Range range = map.range(blockIdx.x);
  const int ti = threadIdx.x / kGramSide, tj = threadIdx.x % kGramSide;
  double total[2][2] = {};
  for (int64_t p = range.begin; p < range.end; p += kGramTile) {
    stage_rows<T>(g, tile_row * kGramTile, p, range.end, left);
    stage_rows<T>(g, tile_col * kGramTile, p, range.end, right);
    __syncthreads();
    A sum[2][2] = {};
    for (int c = 0; c < kGramTile; ++c)
      for (int i = 0; i < 2; ++i)
        for (int j = 0; j < 2; ++j)
          sum[i][j] += left[ti + i * kGramSide][c] * right[tj + j * kGramSide][c];
    for (int i = 0; i < 2; ++i)
      for (int j = 0; j < 2; ++j) total[i][j] += sum[i][j];
    __syncthreads();  // before the tiles are overwritten
  }
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 2; ++j) {
      const int64_t r = tile_row * kGramTile + ti + i * kGramSide;
      const int64_t c = tile_col * kGramTile + tj + j * kGramSide;
      if (r < g.rows && c <= r)
        partial[(static_cast<int64_t>(blockIdx.x) * g.rows + r) * g.rows + c] = total[i][j];
    }
}

// One warp an output (s, i, j); grid covers count * T * T warps.
template <class A>
__global__ void gram_finish_kernel(const double* partial, SegmentMap map, int64_t tasks, A* out) {
  const int64_t index = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (index >= map.blocks.count * tasks * tasks) return;
  const int64_t s = index / (tasks * tasks), i = index / tasks % tasks, j = index % tasks;
  const int64_t low = i < j ? j * tasks + i : i * tasks + j;
  double total = 0;
  for (int c = map.blocks.first[s] + lane; c < map.blocks.first[s + 1]; c += kWarp)
    total += partial[c * tasks * tasks + low];
  total = warp_sum(total);
  if (lane == 0) out[index] = static_cast<A>(total);
}

template <class Launch>
void launch_gram(const GramArgs& args, const Launch& launch) {
  const int64_t tasks = args.g.rows;
  if (tasks == 0) return;
  const int side = blocks_for(tasks, kGramTile);
  dispatch(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    for_each_segment_group(
        args.segments, args.g.cols, [&](const SegmentMap& map, int64_t segment, int64_t chunk) {
          double* partial = args.partial + chunk * tasks * tasks;
          const dim3 grid(map.blocks.first[map.blocks.count], side * (side + 1) / 2);
          if (grid.x > 0) launch(gram_partial_kernel<T>, grid, kThreads, args.g, map, partial);
          const int64_t outputs = map.blocks.count * tasks * tasks;
          launch(gram_finish_kernel<Acc<T>>, blocks_for(outputs * kWarp, kThreads), kThreads,
                 partial, map, tasks, static_cast<Acc<T>*>(args.out) + segment * tasks * tasks);
        });
  });
}

}  // namespace fastmeta::cuda
