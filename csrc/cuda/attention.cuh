// Attention: tiles of 32 queries and 32 keys, and the forward pass. A block has 16 x 16 threads;
// thread (y, x) holds the scores of queries y and y + 16 and keys x and x + 16. Products run
// through shared memory in slices of 16 columns. Plain arithmetic in the accumulation dtype; see
// attention_mma.cuh for tensor cores.
#pragma once

#include "cuda/common.cuh"
#include "fastmeta/attention.h"

namespace fastmeta::cuda {

constexpr int kAttentionSide = 16;                  // of a block of threads, and columns of a slice
constexpr int kAttentionTile = 2 * kAttentionSide;  // queries, and keys
constexpr int kAttentionSlices = kMaxAttentionWidth / kAttentionSide;

// Two queries (or keys) by two keys (or columns) of a thread.
template <class A>
struct Quad {
  A v[2][2] = {};
  __device__ A& operator()(int i, int j) { return v[i][j]; }
};

// Rows y and y + 16 of the outputs in column x of each slice.
template <class A>
struct OutputSums {
  A v[kAttentionSlices][2] = {};
};

// The rows of one head, zeros beyond `count`.
template <class T>
struct HeadRows {
  const T* data;
  int64_t stride;
  int64_t count;
  Acc<T> factor;

  __device__ HeadRows(const Heads& heads, int64_t batch, int64_t head, int64_t count_,
                      Acc<T> factor_ = 1)
      : data(static_cast<const T*>(heads.data) + batch * heads.batch + head * heads.head),
        stride(heads.row),
        count(count_),
        factor(factor_) {}
  __device__ Acc<T> at(int64_t row, int64_t col, int64_t width) const {
    return row < count && col < width ? widen(data[row * stride + col]) * factor : Acc<T>(0);
  }
};

// Whether query i sees key j, but for the mask.
__device__ inline bool sees(const AttentionInput& in, int64_t i, int64_t j) {
  if (i >= in.queries || j >= in.keys || (in.causal && j > i)) return false;
  return !in.window || (i - j < in.window && j - i < in.window);
}

// The score of query i and key j, minus infinity where masked.
template <class T>
__device__ inline Acc<T> masked(const AttentionInput& in, int64_t batch, int64_t head, Acc<T> score,
                                int64_t i, int64_t j) {
  const Acc<T> none = -static_cast<Acc<T>>(INFINITY);
  if (!sees(in, i, j)) return none;
  const AttentionMask& m = in.mask;
  if (m.kind == MaskKind::none) return score;
  const int64_t at = batch * m.batch + head * m.head + i * m.query + j * m.key;
  if (m.kind == MaskKind::keep) return static_cast<const uint8_t*>(m.data)[at] ? score : none;
  return score + widen(static_cast<const T*>(m.data)[at]);
}

template <class A>
struct AttentionShared {
  A left[kAttentionTile][kAttentionSide + 1];
  A right[kAttentionTile][kAttentionSide + 1];
};
template <class A>
using SharedTile = A[kAttentionTile][kAttentionTile + 1];

// The block's tile: queries from i0, keys from j0 of a head.
template <class T>
struct AttentionTile {
  using A = Acc<T>;
  const AttentionInput& in;
  AttentionShared<A>& shared;
  int64_t batch, head;
  int64_t i0 = 0, j0 = 0;
  int x = threadIdx.x % kAttentionSide, y = threadIdx.x / kAttentionSide;

  __device__ int64_t kv_head() const { return head / (in.heads / in.kv_heads); }
  __device__ int64_t query(int a) const { return i0 + y + a * kAttentionSide; }
  __device__ int64_t key(int b) const { return j0 + x + b * kAttentionSide; }
  __device__ int64_t stat(int k, int64_t count) const {
    return ((batch * in.heads + head) * count + k) * in.queries;
  }
  __device__ HeadRows<T> queries(const Heads& heads, A factor = 1) const {
    return {heads, batch, head, in.queries, factor};
  }
  __device__ HeadRows<T> keys(const Heads& heads) const {
    return {heads, batch, kv_head(), in.keys};
  }

  __device__ void load(A (&to)[kAttentionTile][kAttentionSide + 1], const HeadRows<T>& rows,
                       int64_t first, int64_t col, int64_t width) const {
    for (int a = 0; a < 2; ++a) {
      const int row = y + a * kAttentionSide;
      to[row][x] = rows.at(first + row, col + x, width);
    }
  }

  // sum += rows of queries times rows of keys, transposed.
  __device__ void product(const HeadRows<T>& q, const HeadRows<T>& k, int64_t width,
                          Quad<A>& sum) const {
    for (int64_t c = 0; c < width; c += kAttentionSide) {
      __syncthreads();
      load(shared.left, q, i0, c, width);
      load(shared.right, k, j0, c, width);
      __syncthreads();
      for (int s = 0; s < kAttentionSide; ++s)
        for (int a = 0; a < 2; ++a)
          for (int b = 0; b < 2; ++b)
            sum(a, b) +=
                shared.left[y + a * kAttentionSide][s] * shared.right[x + b * kAttentionSide][s];
    }
  }

  // sum += the tile, or its transpose, times rows from `first` on.
  template <bool kTransposed>
  __device__ void accumulate(const SharedTile<A>& tile, const HeadRows<T>& rows, int64_t first,
                             int64_t width, OutputSums<A>& sum) const {
    FM_UNROLL(8)
    for (int slice = 0; slice < kAttentionSlices; ++slice) {
      if (slice * kAttentionSide >= width) continue;
      __syncthreads();
      load(shared.right, rows, first, slice * kAttentionSide, width);
      __syncthreads();
      for (int s = 0; s < kAttentionTile; ++s)
        for (int a = 0; a < 2; ++a) {
          const int row = y + a * kAttentionSide;
          sum.v[slice][a] += (kTransposed ? tile[s][row] : tile[row][s]) * shared.right[s][x];
        }
    }
  }

  __device__ void store(const Quad<A>& values, SharedTile<A>& tile) const {
    for (int a = 0; a < 2; ++a)
      for (int b = 0; b < 2; ++b)
        tile[y + a * kAttentionSide][x + b * kAttentionSide] = values.v[a][b];
  }

  // factor[a] * sum, to contiguous rows of `head_index` of all heads.
  __device__ void write(const OutputSums<A>& sum, const A (&factor)[2], int64_t head_index,
                        int64_t first, int64_t rows, int64_t width, void* to) const {
    for (int slice = 0; slice < kAttentionSlices; ++slice)
      for (int a = 0; a < 2; ++a) {
        const int64_t row = first + y + a * kAttentionSide, col = slice * kAttentionSide + x;
        if (row < rows && col < width)
          static_cast<T*>(to)[(head_index * rows + row) * width + col] =
              narrow<T>(sum.v[slice][a] * factor[a]);
      }
  }

  // Scores, minus infinity where masked.
  __device__ Quad<A> scores() const {
    Quad<A> s;
    product(queries(in.q, static_cast<A>(in.scale)), keys(in.k), in.width, s);
    for (int a = 0; a < 2; ++a)
      for (int b = 0; b < 2; ++b) s(a, b) = masked<T>(in, batch, head, s(a, b), query(a), key(b));
    return s;
  }
  // Of the scores, by the statistics of the forward pass.
  __device__ Quad<A> probabilities() const {
    Quad<A> p = scores();
    const A* stats = static_cast<const A*>(in.stats);
    for (int a = 0; a < 2; ++a)
      for (int b = 0; b < 2; ++b)
        if (query(a) < in.queries)
          p(a, b) = std::exp(p(a, b) - stats[stat(0, 2) + query(a)]) * stats[stat(1, 2) + query(a)];
        else
          p(a, b) = 0;
    return p;
  }
};

// Over the 16 threads of a row; valid in all.
template <class A>
__device__ inline A row_sum(A value) {
  for (int flip = kAttentionSide / 2; flip > 0; flip /= 2)
    value += __shfl_xor_sync(kFullWarp, value, flip);
  return value;
}
template <class A>
__device__ inline A row_max(A value) {
  for (int flip = kAttentionSide / 2; flip > 0; flip /= 2) {
    const A other = __shfl_xor_sync(kFullWarp, value, flip);
    value = other > value ? other : value;
  }
  return value;
}

// The tile of a block of the grid over batch, heads and tiles of `rows`, without its keys.
template <class T>
__device__ AttentionTile<T> attention_tile(const AttentionInput& in,
                                           AttentionShared<Acc<T>>& shared, int64_t heads,
                                           int64_t rows, int64_t& first) {
  const int64_t tiles = (rows + kAttentionTile - 1) / kAttentionTile;
  const int64_t item = blockIdx.x / tiles;
  first = blockIdx.x % tiles * kAttentionTile;
  return {in, shared, item / heads, item % heads};
}

// Calls body() for every tile of keys that the queries of `tile` may see.
template <class T, class Body>
__device__ void each_key_tile(AttentionTile<T>& tile, const Body& body) {
  const AttentionInput& in = tile.in;
  const int64_t last = tile.i0 + kAttentionTile;
  const int64_t end = end_key(in, last < in.queries ? last : in.queries);
  for (tile.j0 = first_key(in, tile.i0); tile.j0 < end; tile.j0 += kAttentionTile) body();
}

template <class T>
__global__ void __launch_bounds__(kThreads) attention_forward_kernel(AttentionForwardArgs args) {
  using A = Acc<T>;
  __shared__ AttentionShared<A> shared;
  __shared__ SharedTile<A> weights;
  const AttentionInput& in = args.in;
  int64_t first = 0;
  AttentionTile<T> tile = attention_tile<T>(in, shared, in.heads, in.queries, first);
  tile.i0 = first;
  const A none = -static_cast<A>(INFINITY);
  A max[2] = {none, none}, sum[2] = {0, 0};
  OutputSums<A> out;
  each_key_tile(tile, [&] {
    Quad<A> s = tile.scores();
    for (int a = 0; a < 2; ++a) {
      const A top = row_max(s(a, 0) > s(a, 1) ? s(a, 0) : s(a, 1));
      const A next = top > max[a] ? top : max[a];
      const A base = next == none ? 0 : next;  // no key seen so far
      const A shrink = std::exp(max[a] - base);
      for (int b = 0; b < 2; ++b) s(a, b) = std::exp(s(a, b) - base);
      sum[a] = sum[a] * shrink + row_sum(s(a, 0) + s(a, 1));
      for (int slice = 0; slice < kAttentionSlices; ++slice) out.v[slice][a] *= shrink;
      max[a] = next;
    }
    __syncthreads();
    tile.store(s, weights);
    tile.template accumulate<false>(weights, tile.keys(in.v), tile.j0, in.value_width, out);
  });
  A inverse[2];
  for (int a = 0; a < 2; ++a) {
    inverse[a] = sum[a] == 0 ? 0 : 1 / sum[a];
    if (tile.x || tile.query(a) >= in.queries) continue;
    A* stats = static_cast<A*>(in.stats);
    stats[tile.stat(0, 2) + tile.query(a)] = sum[a] == 0 ? 0 : max[a];
    stats[tile.stat(1, 2) + tile.query(a)] = inverse[a];
  }
  tile.write(out, inverse, tile.batch * in.heads + tile.head, tile.i0, in.queries, in.value_width,
             args.out);
}

}  // namespace fastmeta::cuda
