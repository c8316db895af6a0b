// Attention in half precision on tensor cores: what its kernels share.
//
// A block of threads has 64 rows of its own (queries or keys), 16 per warp, and walks over tiles of
// the other rows. Both lie in shared memory, padded with zeros to W columns. A warp computes scores
// in blocks of 16 x 16, rows its own; queries come first or second, the products are the same. The
// fragments of P, dS and their tangents, rounded to T, are the left factors of the products that
// follow, so that they never leave registers.
#pragma once

#include "cuda/attention.cuh"
#include "cuda/copy_async.cuh"
#include "cuda/lanes.cuh"
#include "cuda/mma.cuh"

namespace fastmeta::cuda {

constexpr int kMmaRows = 64;  // of a block of threads
constexpr int kMmaThreads = kMmaRows / kMmaSide * kWarp;

// Rows in shared memory end with 16 unused bytes, so that ldmatrix has no bank conflicts.
template <int W>
constexpr int kMmaStride = W + 8;
template <class T, int W>
using MmaRow = T[kMmaStride<W>];

// Other rows of a tile: four tensors of W columns, and 64 rows of each of four more, take less than
// 99 KB, which all GPUs from sm_80 on have.
template <int W>
constexpr int kMmaOthers = W <= 32   ? 64
                           : W <= 64 ? 32
                                     : 16;

// Blocks per multiprocessor that registers must suffice for: as many as do without spills.
template <int W>
constexpr int kMmaBlocks = W <= 32 ? 3 : 2;

// Copies rows from `first` on to shared memory, zeros beyond the last row and column; complete
// after wait_for_copies and a barrier.
template <class T, int W, int kRows>
__device__ inline void stage_rows(const Heads& heads, int64_t batch, int64_t head, int64_t first,
                                  int64_t count, int64_t width, MmaRow<T, W> (&to)[kRows]) {
  constexpr int kVectors = W / kLanes<T>;
  const HeadRows<T> rows(heads, batch, head, count);
  const bool aligned = rows_aligned(rows.data, rows.stride) && width % kLanes<T> == 0;
  FM_UNROLL(1)
  for (int k = threadIdx.x; k < kRows * kVectors; k += kMmaThreads) {
    const int row = k / kVectors, col = k % kVectors * kLanes<T>;
    const bool inside = first + row < count && col < width;
    const T* from = inside ? rows.data + (first + row) * rows.stride + col : rows.data;
    if (aligned)
      copy_async(&to[row][col], from, inside);
    else
      FM_UNROLL(1)
    for (int n = 0; n < kLanes<T>; ++n)
      to[row][col + n] = inside && col + n < width ? from[n] : T{};
  }
}

// Copies statistics of queries from `first` on to shared memory, zeros beyond the last query.
template <int kCount, int kQueries>
__device__ inline void stage_stats(const AttentionInput& in, const void* stats, int64_t batch,
                                   int64_t head, int64_t first, float (*to)[kQueries]) {
  const float* from =
      static_cast<const float*>(stats) + (batch * in.heads + head) * kCount * in.queries;
  for (int k = threadIdx.x; k < kCount * kQueries; k += kMmaThreads) {
    const int64_t i = first + k % kQueries;
    to[k / kQueries][k % kQueries] = i < in.queries ? from[k / kQueries * in.queries + i] : 0.0f;
  }
}

// Whether all of 16 queries from i on see all of 16 keys from j on, or none see any of `count`.
__device__ inline bool sees_all(const AttentionInput& in, int64_t i, int64_t j) {
  const int64_t last_i = i + kMmaSide - 1, last_j = j + kMmaSide - 1;
  return in.mask.kind == MaskKind::none && sees(in, i, last_j) && sees(in, last_i, j) &&
         last_i < in.queries;
}
__device__ inline bool sees_none(const AttentionInput& in, int64_t i, int64_t j, int count) {
  const int64_t end = i + kMmaSide < in.queries ? i + kMmaSide : in.queries;
  return i >= in.queries || end_key(in, end) <= j || first_key(in, i) >= j + count;
}

// Scales and masks the products of 16 queries from i on and 16 keys from j on, in columns the
// queries if kTransposed.
template <class T, bool kTransposed>
__device__ inline void finish_scores(const AttentionInput& in, float scale, int64_t batch,
                                     int64_t head, int64_t i, int64_t j, Accumulator& s) {
  for (int n = 0; n < 2; ++n)
    for (int e = 0; e < 4; ++e) s.c[n][e] *= scale;
  if (sees_all(in, i, j)) return;
  for (int n = 0; n < 2; ++n)
    for (int e = 0; e < 4; ++e) {
      const int row = accumulator_row(e), col = accumulator_column(n, e);
      s.c[n][e] = masked<T>(in, batch, head, s.c[n][e], i + (kTransposed ? col : row),
                            j + (kTransposed ? row : col));
    }
}

// The rows of a warp in an output.
template <int W>
struct MmaSums {
  Accumulator block[W / kMmaSide];
};

// sums += weights * 16 rows
template <class T, int W>
__device__ inline void add_rows(MmaSums<W>& sums, const LeftBlock<T>& weights,
                                const MmaRow<T, W>* rows) {
  FM_UNROLL(8)
  for (int b = 0; b < W / kMmaSide; ++b)
    add_product(sums.block[b], weights,
                load_right_transposed(&rows[0][b * kMmaSide], kMmaStride<W>));
}

// factor * sums, by the halves of the rows, to contiguous rows of `head_index` of all heads.
template <class T, int W>
__device__ inline void write_sums(const MmaSums<W>& sums, const float (&factor)[2],
                                  int64_t head_index, int64_t first, int64_t rows, int64_t width,
                                  void* to) {
  FM_UNROLL(8)
  for (int b = 0; b < W / kMmaSide; ++b)
    for (int n = 0; n < 2; ++n)
      for (int half = 0; half < 2; ++half) {
        const int64_t row = first + accumulator_row(2 * half);
        const int col = b * kMmaSide + accumulator_column(n, 0);
        if (row >= rows || col >= width) continue;
        const float* c = sums.block[b].c[n] + 2 * half;
        const float low = c[0] * factor[half], high = c[1] * factor[half];
        T* at = static_cast<T*>(to) + (head_index * rows + row) * width + col;
        if (width % 2 == 0) {
          *reinterpret_cast<uint32_t*>(at) = pack_pair<T>(low, high);
        } else {
          at[0] = narrow<T>(low);
          if (col + 1 < width) at[1] = narrow<T>(high);
        }
      }
}

// Over the four lanes of a row; valid in all.
__device__ inline float quad_sum(float value) {
  for (int flip = 1; flip < 4; flip *= 2) value += __shfl_xor_sync(kFullWarp, value, flip);
  return value;
}
__device__ inline float quad_max(float value) {
  for (int flip = 1; flip < 4; flip *= 2) {
    const float other = __shfl_xor_sync(kFullWarp, value, flip);
    value = other > value ? other : value;
  }
  return value;
}

// What a block of threads works on: rows of one head.
struct MmaItem {
  unsigned batch, head;
  int64_t first;
  int warp_row = threadIdx.x / kWarp * kMmaSide;  // the first row of the warp, from `first` on
};
__device__ inline MmaItem mma_item(int64_t heads, int64_t rows) {
  const auto tiles = static_cast<unsigned>((rows + kMmaRows - 1) / kMmaRows);
  const unsigned item = blockIdx.x / tiles, all = static_cast<unsigned>(heads);
  return {item / all, item % all, int64_t{blockIdx.x % tiles} * kMmaRows};
}
// Heads of queries that share one of keys and values.
__device__ inline unsigned shared_heads(const AttentionInput& in) {
  return static_cast<unsigned>(in.heads) / static_cast<unsigned>(in.kv_heads);
}
// The end of the rows of a block, of `count` in all.
__device__ inline int64_t end_row(const MmaItem& item, int64_t count) {
  return item.first + kMmaRows < count ? item.first + kMmaRows : count;
}

}  // namespace fastmeta::cuda
