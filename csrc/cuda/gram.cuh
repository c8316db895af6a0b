// gram kernel: partial sums of one chunk for one tile of pairs, then their sum.
#pragma once

#include "cuda/chunk_sums.cuh"
#include "cuda/lanes.cuh"
#include "cuda/launch.h"
#include "fastmeta/gram.h"

namespace fastmeta::cuda {

constexpr int kGramSide = kGramTile / 2;  // threads per side; each holds 2 x 2 pairs

// The k-th tile of the lower triangle, row by row.
__device__ inline void lower_tile(int k, int& row, int& col) {
  row = 0;
  while (k > row) k -= ++row;
  col = k;
}

// tile[r][c] = g[row0 + r][col0 + c], zero past the last row and from column `end` on.
template <bool kWhole, class T>
__device__ inline void stage_rows(Matrix g, int64_t row0, int64_t col0, int64_t end,
                                  Acc<T> (&tile)[kGramTile][kGramTile + 1]) {
  constexpr int kAcross = kGramTile / kLanes<T>;
  for (int k = threadIdx.x; k < kGramTile * kAcross; k += kThreads) {
    const int r = k / kAcross, c = k % kAcross * kLanes<T>;
    Acc<T> x[kLanes<T>] = {};
    if (row0 + r < g.rows)
      load_lanes<kWhole>(static_cast<const T*>(g.data) + (row0 + r) * g.stride + col0 + c,
                         end - col0 - c, x);
    for (int e = 0; e < kLanes<T>; ++e) tile[r][c + e] = x[e];
  }
}

// grid (chunks, tiles), kThreads threads. out is (S, T, T), of this launch's segments.
template <class T>
__global__ void gram_kernel(Matrix g, SegmentMap map, Partials partial, Acc<T>* out) {
  using A = Acc<T>;
  __shared__ A left[kGramTile][kGramTile + 1];
  __shared__ A right[kGramTile][kGramTile + 1];
  int tile_row, tile_col;
  lower_tile(blockIdx.y, tile_row, tile_col);
  const SegmentMap::Range range = map.range(blockIdx.x);
  const int ti = threadIdx.x / kGramSide, tj = threadIdx.x % kGramSide;
  const int64_t row0 = static_cast<int64_t>(tile_row) * kGramTile;
  const int64_t col0 = static_cast<int64_t>(tile_col) * kGramTile;
  const bool aligned = rows_aligned(static_cast<const T*>(g.data) + range.begin, g.stride);
  double total[2][2] = {};
  for (int64_t p = range.begin; p < range.end; p += kGramTile) {
    if (aligned && p + kGramTile <= range.end) {
      stage_rows<true, T>(g, row0, p, range.end, left);
      stage_rows<true, T>(g, col0, p, range.end, right);
    } else {
      stage_rows<false, T>(g, row0, p, range.end, left);
      stage_rows<false, T>(g, col0, p, range.end, right);
    }
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
  // The index of a pair in the (T, T) matrix; negative outside of the lower triangle.
  const auto index = [&](int i, int j) {
    return row0 + i < g.rows && col0 + j <= row0 + i ? (row0 + i) * g.rows + col0 + j : -1;
  };
  const int64_t pairs = g.rows * g.rows;
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 2; ++j) {
      const int64_t at = index(ti + i * kGramSide, tj + j * kGramSide);
      if (at >= 0) partial.sums[blockIdx.x * pairs + at] = total[i][j];
    }
  out += range.segment * pairs;
  sum_chunks(
      map, range.segment, partial.sums, pairs, kGramTile * kGramTile, partial.tickets,
      [&](int k) { return index(k / kGramTile, k % kGramTile); },
      [&](int k, double sum) {
        const int64_t r = row0 + k / kGramTile, c = col0 + k % kGramTile;
        out[r * g.rows + c] = out[c * g.rows + r] = static_cast<A>(sum);
      });
}

template <class Launch>
void launch_gram(const GramArgs& args, const Launch& launch) {
  const int64_t tasks = args.g.rows, pairs = tasks * tasks, tiles = count_gram_tiles(tasks);
  if (tasks == 0) return;
  dispatch(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    for_each_segment_group(args.segments, args.g.cols, args.partial, pairs, tiles, launch,
                           [&](const SegmentMap& map, int64_t segment, const Partials& partial) {
                             const dim3 grid(map.blocks.first[map.blocks.count],
                                             static_cast<unsigned>(tiles));
                             launch(gram_kernel<T>, grid, kThreads, args.g, map, partial,
                                    static_cast<Acc<T>*>(args.out) + segment * pairs);
                           });
  });
}

}  // namespace fastmeta::cuda
