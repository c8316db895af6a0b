// Winograd's F(2x2, 3x3): sixteen products instead of 36 for 2x2 outputs of a 3x3 convolution
// (Lavin & Gray 2016, section 4.1). With the 4x4 inputs d of a tile and the kernel g,
//
//   y = A' [(G g G') * (B' d B)] A
//
// where * is element by element, and so a matrix product over channels for each of 16 places. The
// gradient in g is G' [(A dy A') * (B' d B)] G.
#pragma once

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

// Rows of a matrix are channels of a tile; `position` is the stride between the matrices of
// neighbouring positions.
template <class T, int N>
inline void store_row(const Vec<T> (&v)[N], T* to, int64_t position) {
  for (int k = 0; k < N; ++k) store(to + k * position, v[k]);
}

template <class T>
inline void input_transform(const Vec<T> (&d)[4], Vec<T> (&v)[4]) {
  v[0] = d[0] - d[2];
  v[1] = d[1] + d[2];
  v[2] = d[2] - d[1];
  v[3] = d[1] - d[3];
}

// B' d B of the 4x4 pixels from (y, x) on, some of which may lie outside.
template <class T>
void input_tile(const Images<const T>& from, int64_t image, int64_t y, int64_t x, T* to,
                int64_t position) {
  const bool inside = y >= 0 && x >= 0 && y + 4 <= from.h && x + 4 <= from.w;
  for (int64_t c = 0; c < from.c; c += kLanes<T>) {
    const int64_t lanes = from.c - c < kLanes<T> ? from.c - c : kLanes<T>;
    Vec<T> by_column[4][4];  // columns of B' d, one after the other
    for (int j = 0; j < 4; ++j) {
      Vec<T> d[4];
      for (int i = 0; i < 4; ++i) {
        const bool here = inside || (y + i >= 0 && y + i < from.h && x + j >= 0 && x + j < from.w);
        d[i] = here ? load_some<T>(from.at(image, y + i, x + j) + c, lanes, Vec<T>{}) : Vec<T>{};
      }
      input_transform<T>(d, by_column[j]);
    }
    for (int i = 0; i < 4; ++i) {
      const Vec<T> row[4] = {by_column[0][i], by_column[1][i], by_column[2][i], by_column[3][i]};
      Vec<T> v[4];
      input_transform<T>(row, v);
      store_row<T>(v, to + c + 4 * i * position, position);
    }
  }
}

// A' m A, the 2x2 pixels at (y, x), plus the bias.
template <class T>
void output_tile(const T* from, int64_t position, const T* bias, const Images<T>& to, int64_t image,
                 int64_t y, int64_t x) {
  for (int64_t c = 0; c < to.c; c += kLanes<T>) {
    const int64_t lanes = to.c - c < kLanes<T> ? to.c - c : kLanes<T>;
    const Vec<T> start = load(bias + c);
    Vec<T> top[4], bottom[4];
    for (int j = 0; j < 4; ++j) {
      Vec<T> m[4];
      for (int i = 0; i < 4; ++i) m[i] = load(from + c + (4 * i + j) * position);
      top[j] = m[0] + m[1] + m[2];
      bottom[j] = m[1] - m[2] - m[3];
    }
    const auto write = [&](int64_t row, const Vec<T>(&t)[4]) {
      T* out = to.at(image, row, x) + c;
      store_some<T>(out, lanes, start + t[0] + t[1] + t[2]);
      if (x + 1 < to.w) store_some<T>(out + to.c, lanes, start + t[1] - t[2] - t[3]);
    };
    write(y, top);
    if (y + 1 < to.h) write(y + 1, bottom);
  }
}

template <class T>
inline void gradient_transform(Vec<T> d0, Vec<T> d1, Vec<T> (&v)[4]) {
  v[0] = d0;
  v[1] = d0 + d1;
  v[2] = d0 - d1;
  v[3] = -d1;
}

// A dy A' of the 2x2 pixels from (y, x) on.
template <class T>
void gradient_tile(const Images<const T>& from, int64_t image, int64_t y, int64_t x, T* to,
                   int64_t position) {
  for (int64_t c = 0; c < from.c; c += kLanes<T>) {
    const int64_t lanes = from.c - c < kLanes<T> ? from.c - c : kLanes<T>;
    const auto pixel = [&](int i, int j) {
      return y + i < from.h && x + j < from.w
                 ? load_some<T>(from.at(image, y + i, x + j) + c, lanes, Vec<T>{})
                 : Vec<T>{};
    };
    Vec<T> left[4], right[4];
    gradient_transform<T>(pixel(0, 0), pixel(1, 0), left);
    gradient_transform<T>(pixel(0, 1), pixel(1, 1), right);
    for (int i = 0; i < 4; ++i) {
      Vec<T> v[4];
      gradient_transform<T>(left[i], right[i], v);
      store_row<T>(v, to + c + 4 * i * position, position);
    }
  }
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
