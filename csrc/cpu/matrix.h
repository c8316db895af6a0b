// Small matrix products. Rows of B and C are padded to whole vectors, so that every loop runs over
// whole vectors; A is read element by element, in any order.
#pragma once

#include <utility>

#include "cpu/simd.h"

namespace fastmeta::cpu::FM_ISA {

// Registers for a tile of C: kTileSums sums, kTileVectors of B and one of A.
#if FM_VECTOR_BYTES == 64
constexpr int kTileSums = 24, kTileVectors = 4;
#elif FM_VECTOR_BYTES == 32
constexpr int kTileSums = 12, kTileVectors = 2;
#else
constexpr int kTileSums = 8, kTileVectors = 2;
#endif
// Rows of a tile of V vectors, up to `most`.
template <int V>
constexpr int tile_rows(int most) {
  return kTileSums / V < most ? kTileSums / V : most;
}

template <class T>
int64_t padded(int64_t width) {
  return (width + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

// A (rows, depth) times B (depth, columns).
template <class T>
struct Factors {
  const T* a;
  int64_t a_row;  // row stride of A
  int64_t a_col;  // and its column stride
  const T* b;
  int64_t b_row;
  int64_t depth;
};

// Calls body with the integral constants 0 to N - 1. Around a plain loop, GCC spills arrays of sums
// from registers to the stack.
#define FM_INLINE __attribute__((always_inline))

template <class Body, int... I>
FM_INLINE inline void each_of(std::integer_sequence<int, I...>, const Body& body) {
  (body(std::integral_constant<int, I>{}), ...);
}
template <int N, class Body>
FM_INLINE inline void unrolled(const Body& body) {
  each_of(std::make_integer_sequence<int, N>{}, body);
}

template <class T, int R, int V>
FM_INLINE inline void add_product(const Factors<T>& f, int64_t row, int64_t col,
                                  Vec<T> (&sum)[R][V]) {
  const T* a = f.a + row * f.a_row;
  const T* b = f.b + col;
  for (int64_t k = 0; k < f.depth; ++k, a += f.a_col, b += f.b_row) {
    Vec<T> right[V];
    unrolled<V>([&](auto v) FM_INLINE { right[v] = load(b + v * kLanes<T>); });
    unrolled<R>([&](auto r) FM_INLINE {
      const Vec<T> left = splat<T>(a[r * f.a_row]);
      unrolled<V>([&](auto v) FM_INLINE { sum[r][v] += left * right[v]; });
    });
  }
}

// The initial value of the sums, possibly C itself, with its row and column strides (0 to
// broadcast).
template <class T>
struct Start {
  const T* at;
  int64_t row;
  int64_t col;
};
template <class T>
Start<T> zeros() {
  static constexpr T kZeros[kTileVectors * kLanes<T>] = {};
  return {kZeros, 0, 0};
}

// C = start + the sum of `count` products.
template <class T>
struct Product {
  static constexpr int kMostRows = 8;  // the start of each takes a general register

  T* c;
  int64_t c_row;
  Start<T> start;
  const Factors<T>* factors;
  int count;

  template <int R, int V>
  FM_INLINE void add(int64_t row, int64_t col, Vec<T> (&sum)[R][V]) const {
    for (int i = 0; i < count; ++i) add_product<T, R, V>(factors[i], row, col, sum);
  }
  FM_INLINE const T* start_at(int64_t row, int64_t col) const {
    return start.at + row * start.row + col * start.col;
  }
  FM_INLINE T* row_at(int64_t row) const { return c + row * c_row; }
  // Of the last vector of the tile at `col`.
  template <int V>
  FM_INLINE int64_t last_lanes(int64_t) const {
    return kLanes<T>;
  }
};

template <int R, int V, class T, template <class> class P>
void tile(const P<T>& p, int64_t row, int64_t col) {
  Vec<T> sum[R][V] = {};
  p.add(row, col, sum);
  const int64_t last = p.template last_lanes<V>(col);
  unrolled<R>([&](auto r) FM_INLINE {
    const T* start = p.start_at(row + r, col);
    T* c = p.row_at(row + r) + col;
    unrolled<V>([&](auto v) FM_INLINE {
      constexpr int64_t at = v * kLanes<T>;
      const Vec<T> total = load(start + at) + sum[r][v];
      if constexpr (v + 1 < V)
        store(c + at, total);
      else
        store_some<T>(c + at, last, total);
    });
  });
}

template <int R, int V, class T, template <class> class P>
void some_rows(const P<T>& p, int64_t row, int64_t rows, int64_t col) {
  if (rows == R) {
    tile<R, V>(p, row, col);
  } else if constexpr (R > 1) {
    some_rows<R - 1, V>(p, row, rows, col);
  }
}

// Tiles of as many rows as fit; the last two share their rows evenly.
template <int V, class T, template <class> class P>
void panel(const P<T>& p, int64_t rows, int64_t col) {
  constexpr int kRows = tile_rows<V>(P<T>::kMostRows);
  int64_t row = 0;
  for (; rows - row >= 2 * kRows || rows - row == kRows; row += kRows) tile<kRows, V>(p, row, col);
  if (rows - row > kRows) {
    const int64_t half = (rows - row + 1) / 2;
    some_rows<kRows, V>(p, row, half, col);
    row += half;
  }
  if (row < rows) some_rows<kRows - 1, V>(p, row, rows - row, col);
}

template <int V, class T, template <class> class P>
void last_columns(const P<T>& p, int64_t rows, int64_t col, int64_t vectors) {
  if (vectors == V) {
    panel<V>(p, rows, col);
  } else if constexpr (V > 1) {
    last_columns<V - 1>(p, rows, col, vectors);
  }
}

template <class T, template <class> class P>
void multiply_all(const P<T>& p, int64_t rows, int64_t columns) {
  const int64_t end = padded<T>(columns);
  int64_t col = 0;
  for (; col + kTileVectors * kLanes<T> <= end; col += kTileVectors * kLanes<T>)
    panel<kTileVectors>(p, rows, col);
  if (col < end) last_columns<kTileVectors>(p, rows, col, (end - col) / kLanes<T>);
}

// Every column up to the padding of `columns`, into rows of C with stride c_row.
template <class T, int N>
void multiply(T* c, int64_t c_row, int64_t rows, int64_t columns, const Start<T>& start,
              const Factors<T> (&factors)[N]) {
  multiply_all(Product<T>{c, c_row, start, factors, N}, rows, columns);
}
template <class T, int N>
void multiply(T* c, int64_t rows, int64_t columns, const Start<T>& start,
              const Factors<T> (&factors)[N]) {
  multiply(c, padded<T>(columns), rows, columns, start, factors);
}

template <class T, int Half, int... I>
inline Vec<T> interleave(Vec<T> x, Vec<T> y, std::integer_sequence<int, I...>) {
  constexpr int n = static_cast<int>(kLanes<T>);
  return __builtin_shufflevector(x, y, (I % 2 * n + Half * n / 2 + I / 2)...);
}

// Transposes a square of kLanes vectors by log2(kLanes) perfect shuffles of its rows.
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

// Copies element j of row i, from(i), to element i of row j, to(j). The first `width` elements of
// each target row are written, those from `rows` on with zeros.
template <class T, class From, class To>
void transpose(int64_t rows, int64_t columns, int64_t width, const From& from, const To& to) {
  constexpr int64_t n = kLanes<T>;
  for (int64_t i = 0; i < width; i += n)
    for (int64_t j = 0; j < columns; j += n) {
      const int64_t across = columns - j < n ? columns - j : n;
      Vec<T> square[n];
      for (int64_t k = 0; k < n; ++k)
        square[k] = i + k < rows ? load_some<T>(from(i + k) + j, across, Vec<T>{}) : Vec<T>{};
      transpose_square<T>(square);
      for (int64_t k = 0; k < across; ++k)
        store_some<T>(to(j + k) + i, width - i < n ? width - i : n, square[k]);
    }
}

// The same for matrices with padded rows.
template <class T>
void transpose(const T* from, int64_t rows, int64_t columns, T* to) {
  const int64_t from_row = padded<T>(columns), to_row = padded<T>(rows);
  transpose<T>(
      rows, columns, to_row, [&](int64_t i) { return from + i * from_row; },
      [&](int64_t j) { return to + j * to_row; });
}

}  // namespace fastmeta::cpu::FM_ISA
