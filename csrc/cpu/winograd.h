// Winograd's F(2x2, 3x3): sixteen products instead of 36 for 2x2 outputs of a 3x3 convolution
// (Lavin & Gray 2016, section 4.1). With the 4x4 inputs d of a tile and the kernel g,
//
//   y = A' [(G g G') * (B' d B)] A
//
// where * is element by element, and so a matrix product over channels for each of 16 places. The
// gradient in g is G' [(A dy A') * (B' d B)] G.
#pragma once

#include "cpu/channels.h"
#include "cpu/neighbours.h"

namespace fastmeta::cpu::FM_ISA {
namespace winograd {

constexpr int kPositions = 16;

// The stride between the matrices of neighbouring positions, of `rows` rows: a cache line more than
// their size, since strides of whole pages compete for the same places in the cache.
template <class T>
int64_t position_stride(int64_t rows, int64_t row) {
  return rows * row + 64 / static_cast<int64_t>(sizeof(T));
}

// The 2x2 tiles of images' outputs, the last of which may reach beyond the edge.
struct Tiles {
  int64_t rows, columns;

  Tiles(int64_t h, int64_t w) : rows((h + 1) / 2), columns((w + 1) / 2) {}
  int64_t count() const { return rows * columns; }
  // Calls body(i, image, y, x) for `some` tiles from `first` on; (y, x) is the first pixel of tile
  // i.
  template <class Body>
  void each(int64_t first, int64_t some, const Body& body) const {
    int64_t image = first / count(), y = first / columns % rows, x = first % columns;
    for (int64_t i = 0; i < some; ++i) {
      body(i, image, 2 * y, 2 * x);
      if (++x < columns) continue;
      x = 0;
      if (++y < rows) continue;
      y = 0;
      ++image;
    }
  }
};

// Element I of B' d and of A d, along one axis; d(k) returns element k. Few values at a time and
// constants at compile time keep all of them in registers.
template <int I, class Get>
FM_INLINE inline auto input_transform(const Get& d) {
  constexpr int first[] = {0, 1, 2, 1}, second[] = {2, 2, 1, 3};
  const auto a = d(std::integral_constant<int, first[I]>{});
  const auto b = d(std::integral_constant<int, second[I]>{});
  return I == 1 ? a + b : a - b;
}
template <int I, class Get>
FM_INLINE inline auto gradient_transform(const Get& d) {
  const auto a = d(std::integral_constant<int, 0>{}), b = d(std::integral_constant<int, 1>{});
  return I == 0 ? a : I == 1 ? a + b : I == 2 ? a - b : -b;
}

// Calls body(c, pixel) for every vector of channels; pixel(i, j) is that of pixel (y + i, x + j),
// for constants up to N, zeros outside of the image.
template <int N, class T, class Body>
FM_INLINE inline void each_vector_of_tile(const Images<const T>& from, int64_t image, int64_t y,
                                          int64_t x, const Body& body) {
  const int64_t top = std::max<int64_t>(0, -y), bottom = std::min<int64_t>(N, from.h - y);
  const int64_t left = std::max<int64_t>(0, -x), right = std::min<int64_t>(N, from.w - x);
  const T* first = from.at(image, y + top, x + left);
  const int64_t row = from.w * from.c;
  if (bottom - top == N && right - left == N) {
    each_vector<T>(from.c, [&](auto lanes, int64_t c) FM_INLINE {
      body(c,
           [&](auto i, auto j) FM_INLINE { return lanes.load(first + i * row + j * from.c + c); });
    });
    return;
  }
  // Pixels outside are read from zeros, by a table: branches would be predicted wrongly.
  alignas(64) static constexpr T kZeros[kLanes<T>] = {};
  const T* pixels[N][N];
  int64_t channels[N][N];  // all bits set for pixels inside, none for those outside
  for (int64_t i = 0; i < N; ++i)
    for (int64_t j = 0; j < N; ++j) {
      const bool inside = (i >= top) & (i < bottom) & (j >= left) & (j < right);
      channels[i][j] = -static_cast<int64_t>(inside);
      pixels[i][j] = inside ? first + (i - top) * row + (j - left) * from.c : kZeros;
    }
  each_vector<T>(from.c, [&](auto lanes, int64_t c) {
    body(c,
         [&](auto i, auto j) FM_INLINE { return lanes.load(pixels[i][j] + (c & channels[i][j])); });
  });
}

// B' d B of the 4x4 pixels from (y, x) on, to a row of the matrix of each position; those are
// `position` apart.
template <class T>
void input_tile(const Images<const T>& from, int64_t image, int64_t y, int64_t x, T* to,
                int64_t position) {
  each_vector_of_tile<4>(from, image, y, x, [&](int64_t c, const auto& pixel) FM_INLINE {
    unrolled<4>([&](auto j) FM_INLINE {
      Vec<T> v[4];
      unrolled<4>([&](auto i) FM_INLINE {
        v[i] = input_transform<j>([&](auto k) FM_INLINE { return pixel(i, k); });
      });
      unrolled<4>([&](auto i) FM_INLINE {
        store(to + c + (4 * i + j) * position,
              input_transform<i>([&](auto k) FM_INLINE { return v[k]; }));
      });
    });
  });
}

// A dy A' of the 2x2 pixels from (y, x) on.
template <class T>
void gradient_tile(const Images<const T>& from, int64_t image, int64_t y, int64_t x, T* to,
                   int64_t position) {
  each_vector_of_tile<2>(from, image, y, x, [&](int64_t c, const auto& pixel) FM_INLINE {
    unrolled<4>([&](auto j) FM_INLINE {
      Vec<T> v[2];
      unrolled<2>([&](auto i) FM_INLINE {
        v[i] = gradient_transform<j>([&](auto k) FM_INLINE { return pixel(i, k); });
      });
      unrolled<4>([&](auto i) FM_INLINE {
        store(to + c + (4 * i + j) * position,
              gradient_transform<i>([&](auto k) FM_INLINE { return v[k]; }));
      });
    });
  });
}

// A' m A, the 2x2 pixels at (y, x), plus the bias.
template <class T>
void output_tile(const T* from, int64_t position, const T* bias, const Images<T>& to, int64_t image,
                 int64_t y, int64_t x) {
  const bool right = x + 1 < to.w, below = y + 1 < to.h;
  T* first = to.at(image, y, x);
  each_vector<T>(to.c, [&](auto lanes, int64_t c) FM_INLINE {
    const Vec<T> start = load(bias + c);
    Vec<T> sum[2][2] = {{start, start}, {start, start}};
    unrolled<4>([&](auto j) FM_INLINE {
      Vec<T> m[4];
      unrolled<4>([&](auto i) FM_INLINE { m[i] = load(from + c + (4 * i + j) * position); });
      const Vec<T> column[2] = {m[0] + m[1] + m[2], m[1] - m[2] - m[3]};
      unrolled<2>([&](auto i) FM_INLINE {
        if constexpr (j < 3) sum[i][0] += column[i];
        if constexpr (j == 1) sum[i][1] += column[i];
        if constexpr (j > 1) sum[i][1] -= column[i];
      });
    });
    T* out = first + c;
    lanes.store(out, sum[0][0]);
    if (right) lanes.store(out + to.c, sum[0][1]);
    out += to.w * to.c;
    if (below) lanes.store(out, sum[1][0]);
    if (below && right) lanes.store(out + to.c, sum[1][1]);
  });
}

// A vector to each of N matrices, which are `position` apart.
template <class T, int N>
inline void store_row(const Vec<T> (&v)[N], T* to, int64_t position) {
  for (int k = 0; k < N; ++k) store(to + k * position, v[k]);
}

// G g G' of nine matrices of `size` elements: sixteen.
template <class T>
void weight_transform(const T* from, int64_t size, T* to) {
  const auto half = [](Vec<T> a, Vec<T> b, Vec<T> c, Vec<T>(&v)[4]) {
    const Vec<T> ends = (a + c) * static_cast<T>(0.5), middle = b * static_cast<T>(0.5);
    v[0] = a;
    v[1] = ends + middle;
    v[2] = ends - middle;
    v[3] = c;
  };
  for (int64_t k = 0; k < size; k += kLanes<T>) {
    Vec<T> columns[3][4];
    for (int j = 0; j < 3; ++j)
      half(load(from + j * size + k), load(from + (3 + j) * size + k),
           load(from + (6 + j) * size + k), columns[j]);
    for (int i = 0; i < 4; ++i) {
      Vec<T> v[4];
      half(columns[0][i], columns[1][i], columns[2][i], v);
      store_row<T>(v, to + k + 4 * i * size, size);
    }
  }
}

// G' u G of sixteen matrices of `size` elements: nine.
template <class T>
void weight_gradient(const T* from, int64_t size, T* to) {
  const auto fold = [](Vec<T> a, Vec<T> b, Vec<T> c, Vec<T> d, Vec<T>(&v)[3]) {
    const Vec<T> half = (b + c) * static_cast<T>(0.5);
    v[0] = a + half;
    v[1] = (b - c) * static_cast<T>(0.5);
    v[2] = d + half;
  };
  for (int64_t k = 0; k < size; k += kLanes<T>) {
    Vec<T> columns[4][3];
    for (int j = 0; j < 4; ++j)
      fold(load(from + j * size + k), load(from + (4 + j) * size + k),
           load(from + (8 + j) * size + k), load(from + (12 + j) * size + k), columns[j]);
    for (int i = 0; i < 3; ++i) {
      Vec<T> v[3];
      fold(columns[0][i], columns[1][i], columns[2][i], columns[3][i], v);
      store_row<T>(v, to + k + 3 * i * size, size);
    }
  }
}

}  // namespace winograd
}  // namespace fastmeta::cpu::FM_ISA
