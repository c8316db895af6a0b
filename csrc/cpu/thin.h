// Convolution of images of few channels (C). Their rows are copied with zeros around them, so that
// all output pixels have nine neighbours, at distances that the compiler knows.
#pragma once

#include "cpu/neighbours.h"

namespace fastmeta::cpu::FM_ISA {
namespace thin {

constexpr int kMostRows = 12;  // output pixels at once, of which rows must have as many

// Rows of an image: [first, first + count) and `width` elements of each, of which the first C are a
// border; what is outside of the image is zero.
template <int C, class T>
void copy_rows(const Images<const T>& from, int64_t image, int64_t first, int64_t count,
               int64_t width, T* to) {
  const int64_t inside = std::min(width - C, from.w * C);
  for (int64_t y = first; y < first + count; ++y, to += width) {
    memset(to, 0, sizeof(T) * width);
    if (y >= 0 && y < from.h) memcpy(to + C, from.at(image, y, 0), sizeof(T) * inside);
  }
}

template <class T>
struct Weights {
  const T* start;  // of every pixel's sum
  const T* rows;   // one for each neighbour and channel
  int64_t row;
};

// V vectors of channels of a row of output pixels, from `col` on; the last tile overlaps the one
// before it.
template <int C, int S, int V, class T>
void panel(const T* from, int64_t width, const Weights<T>& w, int64_t col, const Images<T>& to,
           T* out) {
  constexpr int R = tile_rows<V>(kMostRows);
  const int64_t channels = to.c, w_row = w.row;
  const int64_t last = std::min(kLanes<T>, channels - col - (V - 1) * kLanes<T>);
  const T* start = w.start + col;
  for (int64_t x = 0; x < to.w; x += R) {
    x = std::min(x, to.w - R);
    Vec<T> sum[R][V] = {};
    const T *a = from + x * S * C, *b = w.rows + col;
    for (int y = 0; y < 3; ++y, a += width)
      unrolled<3 * C>([&](auto k) FM_INLINE {
        Vec<T> right[V];
        unrolled<V>([&](auto v) FM_INLINE { right[v] = load(b + v * kLanes<T>); });
        b += w_row;
        unrolled<R>([&](auto r) FM_INLINE {
          const Vec<T> left = splat<T>(a[r * S * C + k]);
          unrolled<V>([&](auto v) FM_INLINE { sum[r][v] += left * right[v]; });
        });
        asm("" : "+r"(a), "+r"(b));  // later loads stay below, else they spill the sums
      });
    T* pixel = out + x * channels + col;
    unrolled<R>([&](auto r) FM_INLINE {
      unrolled<V>([&](auto v) FM_INLINE {
        constexpr int64_t at = v * kLanes<T>;
        const Vec<T> value = load(start + at) + sum[r][v];
        if constexpr (v + 1 < V)
          store(pixel + at, value);
        else
          store_some<T>(pixel + at, last, value);
      });
      pixel += channels;
    });
  }
}

// All channels from `col` on.
template <int C, int S, int V, class T>
void panels(const T* from, int64_t width, const Weights<T>& w, int64_t col, const Images<T>& to,
            T* out) {
  for (; col + (V - 1) * kLanes<T> < to.c; col += V * kLanes<T>)
    panel<C, S, V>(from, width, w, col, to, out);
  if constexpr (V > 1) panels<C, S, V - 1>(from, width, w, col, to, out);
}

}  // namespace thin
}  // namespace fastmeta::cpu::FM_ISA
