// Small matrix products for the MLP kernel. Rows of B and C are padded to whole vectors with zeros,
// so that every loop runs over whole vectors; A is read element by element, in any order.
#pragma once

#include <utility>

#include "cpu/simd.h"

namespace fastmeta::cpu::FM_ISA {
namespace mlp {

// Registers for a tile of C: kTileRows x kTileVectors sums, kTileVectors of B and one of A.
#if FM_VECTOR_BYTES == 64
constexpr int kTileRows = 6, kTileVectors = 3;
#else
constexpr int kTileRows = 4, kTileVectors = 2;
#endif

template <class T>
int64_t padded(int64_t width) {
  return (width + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

// A (rows, depth) times B (depth, columns).
template <class T>
struct Factors {
  const T* a;
  int64_t a_row;  // elements from one row of A to the next
  int64_t a_col;  // and from one column to the next
  const T* b;
  int64_t b_row;
  int64_t depth;
};

template <class T, int R, int V>
inline void add_product(const Factors<T>& f, int64_t row, int64_t col, Vec<T> (&sum)[R][V]) {
  const T* a = f.a + row * f.a_row;
  const T* b = f.b + col;
  for (int64_t k = 0; k < f.depth; ++k, a += f.a_col, b += f.b_row) {
    Vec<T> right[V];
    for (int v = 0; v < V; ++v) right[v] = load(b + v * kLanes<T>);
    for (int r = 0; r < R; ++r) {
      const Vec<T> left = splat<T>(a[r * f.a_row]);
      for (int v = 0; v < V; ++v) sum[r][v] += left * right[v];
    }
  }
}

// C = start + the sum of the products, with one row `start` for all rows of C.
template <class T>
struct Product {
  T* c;
  int64_t c_row;
  const T* start;
  int64_t start_col;  // from one column of start to the next: 1, or 0 for zeros
  const Factors<T>* factors;
  int count;
};

template <class T, int R, int V>
void tile(const Product<T>& p, int64_t row, int64_t col) {
  Vec<T> sum[R][V];
  for (int v = 0; v < V; ++v) {
    const Vec<T> first = load(p.start + col * p.start_col + v * kLanes<T>);
    for (int r = 0; r < R; ++r) sum[r][v] = first;
  }
  for (int i = 0; i < p.count; ++i) add_product<T, R, V>(p.factors[i], row, col, sum);
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) store(p.c + (row + r) * p.c_row + col + v * kLanes<T>, sum[r][v]);
}

template <class T, int R, int V>
void last_rows(const Product<T>& p, int64_t row, int64_t rows, int64_t col) {
  if (rows == R) {
    tile<T, R, V>(p, row, col);
  } else if constexpr (R > 1) {
    last_rows<T, R - 1, V>(p, row, rows, col);
  }
}

template <class T, int V>
void panel(const Product<T>& p, int64_t rows, int64_t col) {
  int64_t row = 0;
  for (; row + kTileRows <= rows; row += kTileRows) tile<T, kTileRows, V>(p, row, col);
  if (row < rows) last_rows<T, kTileRows - 1, V>(p, row, rows - row, col);
}

template <class T, int V = kTileVectors>
void last_columns(const Product<T>& p, int64_t rows, int64_t col, int64_t vectors) {
  if (vectors == V) {
    panel<T, V>(p, rows, col);
  } else if constexpr (V > 1) {
    last_columns<T, V - 1>(p, rows, col, vectors);
  }
}

// Every column up to the padding of `columns`; without start, the sums begin at zero.
template <class T, int N>
void multiply(T* c, int64_t rows, int64_t columns, const T* start, const Factors<T> (&factors)[N]) {
  const int64_t c_row = padded<T>(columns);
  static constexpr T kZeros[kTileVectors * kLanes<T>] = {};
  const Product<T> p{c, c_row, start ? start : kZeros, start != nullptr, factors, N};
  int64_t col = 0;
  for (; col + kTileVectors * kLanes<T> <= c_row; col += kTileVectors * kLanes<T>)
    panel<T, kTileVectors>(p, rows, col);
  if (col < c_row) last_columns<T>(p, rows, col, (c_row - col) / kLanes<T>);
}

template <class T, int Half, int... I>
inline Vec<T> interleave(Vec<T> x, Vec<T> y, std::integer_sequence<int, I...>) {
  constexpr int n = static_cast<int>(kLanes<T>);
  return __builtin_shufflevector(x, y, (I % 2 * n + Half * n / 2 + I / 2)...);
}

// A square of kLanes vectors: log2(kLanes) perfect shuffles of its rows transpose it.
template <class T>
inline void transpose_square(Vec<T> (&v)[kLanes<T>]) {
  constexpr int n = static_cast<int>(kLanes<T>);
  constexpr auto lanes = std::make_integer_sequence<int, n>{};
  for (int round = 1; round < n; round *= 2) {
    Vec<T> next[n];
    for (int i = 0; i < n / 2; ++i) {
      next[2 * i] = interleave<T, 0>(v[i], v[i + n / 2], lanes);
      next[2 * i + 1] = interleave<T, 1>(v[i], v[i + n / 2], lanes);
    }
    for (int i = 0; i < n; ++i) v[i] = next[i];
  }
}

// to (columns, rows) = from (rows, columns), both with padded rows.
template <class T>
void transpose(const T* from, int64_t rows, int64_t columns, T* to) {
  const int64_t from_row = padded<T>(columns), to_row = padded<T>(rows);
  for (int64_t i = 0; i < rows; i += kLanes<T>)
    for (int64_t j = 0; j < columns; j += kLanes<T>) {
      Vec<T> square[kLanes<T>];
      for (int64_t k = 0; k < kLanes<T>; ++k)
        square[k] = i + k < rows ? load(from + (i + k) * from_row + j) : Vec<T>{};
      transpose_square<T>(square);
      for (int64_t k = 0; k < kLanes<T> && j + k < columns; ++k)
        store(to + (j + k) * to_row + i, square[k]);
    }
}

}  // namespace mlp
}  // namespace fastmeta::cpu::FM_ISA
