// Which pixels of an image a convolution reads for which pixels of another.
#pragma once

#include "cpu/matrix.h"
#include "fastmeta/conv.h"

namespace fastmeta::cpu::FM_ISA {

// Along one axis: the i-th of `size` output pixels lies at begin + apart * i, and is a sum over
// `count` neighbours of the source, from pixel step * i + first on, with those places of the
// kernel.
struct Axis {
  int64_t size;
  int64_t begin;
  int64_t apart;
  int64_t step;
  int64_t first;
  int count;
  int place[3];
};

inline Axis reads_input(int64_t size, int64_t stride) {
  return {(size - 1) / stride + 1, 0, 1, stride, -1, 3, {0, 1, 2}};
}
// The gradient in the input; with stride 2, its even and its odd pixels have different neighbours.
inline Axis reads_output(int64_t size, int64_t stride, bool odd) {
  if (stride == 1) return {size, 0, 1, 1, -1, 3, {2, 1, 0}};
  if (odd) return {size / 2, 1, 2, 1, 0, 2, {2, 0, 0}};
  return {(size + 1) / 2, 0, 2, 1, 0, 1, {1, 0, 0}};
}

struct Neighbours {
  Axis y;
  Axis x;
  int64_t pixels() const { return y.size * x.size; }  // an image
  int64_t count() const { return y.count * x.count; }
};

template <class T>
struct Images {
  T* data;
  int64_t h;
  int64_t w;
  int64_t c;

  T* at(int64_t image, int64_t y, int64_t x) const { return data + ((image * h + y) * w + x) * c; }
};

template <class T>
inline void copy(const T* from, int64_t size, T* to) {
  for (int64_t i = 0; i < size; i += kLanes<T>) {
    const int64_t n = size - i < kLanes<T> ? size - i : kLanes<T>;
    store_some<T>(to + i, n, load_some<T>(from + i, n, Vec<T>{}));
  }
}
template <class T>
inline void clear(int64_t size, T* to) {
  for (int64_t i = 0; i < size; i += kLanes<T>)
    store_some<T>(to + i, size - i < kLanes<T> ? size - i : kLanes<T>, Vec<T>{});
}

// Counts pixels (image, y, x) of images with h x w of them.
struct Pixel {
  int64_t image, y, x;

  Pixel(int64_t index, int64_t h, int64_t w)
      : image(index / (h * w)), y(index / w % h), x(index % w) {}
  void next(int64_t h, int64_t w) {
    if (++x < w) return;
    x = 0;
    if (++y < h) return;
    y = 0;
    ++image;
  }
};

// The neighbours of the output pixels [begin, end), a row each, zero where the source has none.
template <class T>
void gather(const Images<const T>& from, const Neighbours& at, int64_t begin, int64_t end, T* to) {
  const int64_t run = at.x.count * from.c;
  Pixel p(begin, at.y.size, at.x.size);
  for (int64_t i = begin; i < end; ++i, p.next(at.y.size, at.x.size)) {
    const int64_t left = at.x.step * p.x + at.x.first, right = left + at.x.count;
    const int64_t begin_x = left < 0 ? 0 : left, end_x = right > from.w ? from.w : right;
    const int64_t before = (begin_x - left) * from.c, after = (right - end_x) * from.c;
    for (int k = 0; k < at.y.count; ++k, to += run) {
      const int64_t y = at.y.step * p.y + at.y.first + k;
      if (y < 0 || y >= from.h) {
        clear(run, to);
        continue;
      }
      if (before) clear(before, to);
      copy(from.at(p.image, y, begin_x), run - before - after, to + before);
      if (after) clear(after, to + run - after);
    }
  }
}

// A row for each neighbour and channel of the source, of padded `columns`, from weights
// (out, in, 3, 3): for outputs as they are, for inputs with the two exchanged.
template <class T>
void order_weights(const T* weight, const ConvShape& shape, const Neighbours& at, bool for_input,
                   T* to) {
  const int64_t columns = padded<T>(for_input ? shape.in : shape.out);
  const int64_t channels = for_input ? shape.out : shape.in;
  int64_t row_of[9];
  for (int64_t& row : row_of) row = -1;
  for (int i = 0; i < at.y.count; ++i)
    for (int j = 0; j < at.x.count; ++j)
      row_of[3 * at.y.place[i] + at.x.place[j]] = (i * at.x.count + j) * channels;
  if (!for_input) {
    transpose<T>(
        shape.out, 9 * shape.in, columns, [&](int64_t o) { return weight + 9 * shape.in * o; },
        [&](int64_t k) { return to + (row_of[k % 9] + k / 9) * columns; });
    return;
  }
  for (int place = 0; place < 9; ++place) {
    if (row_of[place] < 0) continue;
    for (int64_t o = 0; o < shape.out; ++o) {
      const T* w = weight + 9 * shape.in * o + place;
      T* row = to + (row_of[place] + o) * columns;
      for (int64_t i = 0; i < shape.in; ++i) row[i] = w[9 * i];
      for (int64_t i = shape.in; i < columns; ++i) row[i] = 0;
    }
  }
}

}  // namespace fastmeta::cpu::FM_ISA
