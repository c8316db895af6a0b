// Tiles of attention. A tile holds its scores transposed, (keys, queries): row statistics are then
// vectors of queries, and the rows of k and v enter the products as they are in memory.
#pragma once

#include <algorithm>
#include <limits>

#include "cpu/arena.h"
#include "cpu/matrix.h"
#include "cpu/mlp_math.h"
#include "fastmeta/attention.h"

namespace fastmeta::cpu::FM_ISA {
namespace attention {

constexpr int64_t kRows = kAttentionRows;  // queries of a tile
constexpr int64_t kKeys = 48;              // and keys: whole tiles of registers

template <class A>
constexpr A kInfinity = std::numeric_limits<A>::infinity();

// e^x, and 0 for the scores of masked keys.
template <class A>
inline Vec<A> exp_of(Vec<A> x) {
  return x < splat<A>(mlp::Format<A>::kMinInput) ? Vec<A>{} : mlp::exp_of<A>(x);
}

template <class A>
inline Vec<A> larger(Vec<A> x, Vec<A> y) {
  return x > y ? x : y;
}

// The rows of one head.
template <class T>
struct Rows {
  const T* data;
  int64_t stride;

  Rows(const Heads& heads, int64_t batch, int64_t head)
      : data(static_cast<const T*>(heads.data) + batch * heads.batch + head * heads.head),
        stride(heads.row) {}
  const T* at(int64_t row) const { return data + row * stride; }
};

// Rows in the accumulation dtype.
template <class A>
struct Block {
  const A* at;
  int64_t row;
};

// factor * from, and zeros up to the row stride of the target.
template <class T>
void copy_rows(const Rows<T>& from, int64_t first, int64_t rows, int64_t width, Acc<T> factor,
               Acc<T>* to, int64_t to_row) {
  using A = Acc<T>;
  for (int64_t i = 0; i < rows; ++i, to += to_row) {
    const T* row = from.at(first + i);
    int64_t c = 0;
    for (; c + kLanes<A> <= width; c += kLanes<A>) store(to + c, load(row + c) * factor);
    for (; c < width; ++c) to[c] = widen(row[c]) * factor;
    for (; c < to_row; ++c) to[c] = 0;
  }
}

// The same rows in place if they can be read by whole vectors, or else a copy.
template <class T>
Block<Acc<T>> rows_of(const Rows<T>& from, int64_t first, int64_t rows, int64_t width,
                      Acc<T>* buffer) {
  using A = Acc<T>;
  if constexpr (std::is_same_v<T, A>)
    if (width % kLanes<A> == 0) return {from.at(first), from.stride};
  const int64_t row = attention_padded(width);
  copy_rows(from, first, rows, width, A{1}, buffer, row);
  return {buffer, row};
}

// factor * from, contiguous.
template <class T>
void write_rows(const Acc<T>* from, int64_t from_row, int64_t rows, int64_t width, Acc<T> factor,
                T* to) {
  using A = Acc<T>;
  for (int64_t i = 0; i < rows; ++i, from += from_row, to += width) {
    int64_t c = 0;
    for (; c + kLanes<A> <= width; c += kLanes<A>) store(to + c, load(from + c) * factor);
    for (; c < width; ++c) to[c] = narrow<T>(from[c] * factor);
  }
}

// Rows of queries, (rows, width), and their transpose, (width, kRows).
template <class T>
struct QueryRows {
  using A = Acc<T>;
  int64_t width, row;
  A *rows, *across;

  static int64_t size(int64_t width) { return 2 * kRows * attention_padded(width); }
  QueryRows(int64_t width_, Arena<A>& arena)
      : width(width_),
        row(attention_padded(width_)),
        rows(arena.take(kRows * row)),
        across(arena.take(kRows * row)) {}
  void read(const Rows<T>& from, int64_t first, int64_t count, A factor) {
    copy_rows(from, first, count, width, factor, rows, row);
    transpose<A>(
        count, width, kRows, [&](int64_t i) { return rows + i * row; },
        [&](int64_t j) { return across + j * kRows; });
  }
};

// sum[i] = <x_i, y_i>
template <class A>
void dot_rows(const A* x, const A* y, int64_t row, int64_t rows, A* sum) {
  for (int64_t i = 0; i < rows; ++i) {
    Vec<A> total{};
    for (int64_t c = 0; c < row; c += kLanes<A>)
      total += load(x + i * row + c) * load(y + i * row + c);
    A value = 0;
    for (int64_t l = 0; l < kLanes<A>; ++l) value += total[l];
    sum[i] += value;
  }
}

// Calls body(i) for every vector of the queries of a tile.
template <class A, class Body>
FM_INLINE inline void each_query(int64_t rows, const Body& body) {
  for (int64_t i = 0; i < rows; i += kLanes<A>) body(i);
}

// A tile of one head: queries [i0, i0 + rows) and keys [j0, j0 + keys).
template <class T>
struct Tile {
  using A = Acc<T>;
  const AttentionInput& in;
  int64_t batch, head;
  int64_t i0, rows;
  int64_t j0 = 0, keys = 0;

  int64_t kv_head() const { return head / (in.heads / in.kv_heads); }
  int64_t first() const { return first_key(in, i0); }
  int64_t end() const { return end_key(in, i0 + rows); }
  // Offset of a statistic of count per query.
  int64_t stat(int64_t k, int64_t count) const {
    return ((batch * in.heads + head) * count + k) * in.queries + i0;
  }

  // to = the sum of N products of rows of keys with transposed rows of queries.
  template <int N>
  void across(A* to, const Factors<A> (&factors)[N]) const {
    multiply<A, N>(to, kRows, keys, rows, zeros<A>(), factors);
  }
  Factors<A> product(const Block<A>& left, const QueryRows<T>& right) const {
    return {left.at, left.row, 1, right.across, kRows, right.width};
  }
  // Adds products of the tile with rows of keys to rows of queries, and the other way round.
  Factors<A> with_keys(const A* tile, const Block<A>& right) const {
    return {tile, 1, kRows, right.at, right.row, keys};
  }
  Factors<A> with_queries(const A* tile, const QueryRows<T>& right) const {
    return {tile, kRows, 1, right.rows, right.row, rows};
  }

  // Scores, minus infinity where masked.
  void scores(const Block<A>& k, const QueryRows<T>& q, A* s) const {
    across<1>(s, {product(k, q)});
    if (in.mask.kind == MaskKind::keep)
      apply_mask<uint8_t>(s, [](A x, uint8_t keep) { return keep ? x : -kInfinity<A>; });
    if (in.mask.kind == MaskKind::add)
      apply_mask<T>(s, [](A x, T bias) { return x + widen(bias); });
    if ((in.causal && j0 + keys > i0 + 1) ||
        (in.window && (i0 + rows - j0 > in.window || j0 + keys - i0 > in.window)))
      apply_band(s);
  }

  template <class M, class Body>
  void apply_mask(A* s, const Body& body) const {
    const AttentionMask& m = in.mask;
    const M* mask =
        static_cast<const M*>(m.data) + batch * m.batch + head * m.head + i0 * m.query + j0 * m.key;
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < keys; ++j) {
        A& x = s[j * kRows + i];
        x = body(x, mask[i * m.query + j * m.key]);
      }
  }

  void apply_band(A* s) const {
    constexpr A kFar = 1 << 20;
    Vec<A> lane;
    for (int64_t l = 0; l < kLanes<A>; ++l) lane[l] = static_cast<A>(l);
    for (int64_t j = 0; j < keys; ++j) {
      const int64_t key = j0 + j - i0;  // counted from the first query
      const A low = static_cast<A>(in.causal ? key : in.window ? key - in.window + 1 : -kRows);
      const A high = in.window ? static_cast<A>(key + in.window - 1) : kFar;
      each_query<A>(rows, [&](int64_t i) FM_INLINE {
        const Vec<A> at = lane + static_cast<A>(i), x = load(s + j * kRows + i);
        const Vec<A> kept = at < splat<A>(low) ? splat<A>(-kInfinity<A>) : x;
        store(s + j * kRows + i, at > splat<A>(high) ? splat<A>(-kInfinity<A>) : kept);
      });
    }
  }
};

// A copy of the statistics of a tile's queries, zeros beyond.
template <class A>
void read_stats(const A* from, int64_t rows, A* to) {
  for (int64_t i = 0; i < kRows; ++i) to[i] = i < rows ? from[i] : 0;
}

// Calls body(tile) for every tile of queries: body is made anew, by make(), in every thread.
template <class T, class Make>
void each_query_tile(const AttentionInput& in, const Parallel& parallel, const Make& make) {
  const int64_t tiles = (in.queries + kRows - 1) / kRows, items = in.batch * in.heads * tiles;
  parallel.dynamic(items, 1, [&](const auto& next) {
    auto body = make();
    for (int64_t item = next(); item < items; item = next()) {
      // The last queries of a causal head see the most keys: first.
      const int64_t head = item / tiles, first = (tiles - 1 - item % tiles) * kRows;
      body(Tile<T>{in, head / in.heads, head % in.heads, first,
                   std::min(kRows, in.queries - first)});
    }
  });
}

// Calls body(tile) for every tile of keys.
template <class T, class Body>
FM_INLINE inline void each_key_tile(Tile<T> tile, const Body& body) {
  const int64_t end = tile.end();
  for (tile.j0 = tile.first(); tile.j0 < end; tile.j0 += kKeys) {
    tile.keys = std::min(kKeys, end - tile.j0);
    body(tile);
  }
}

// Defines the kernel attention_<name>, which dispatches to name<T>(args, parallel).
#define FM_ATTENTION(name, Args, input)                                                           \
  void attention_##name(const Args& args, const Parallel& parallel) {                             \
    dispatch((input).dtype, [&](auto zero) { attention::name<decltype(zero)>(args, parallel); }); \
  }

}  // namespace attention
}  // namespace fastmeta::cpu::FM_ISA
