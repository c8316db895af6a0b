// Direct convolution as matrix products of neighbouring pixels and weights, skipping the padding.
// Pixels are read and written in place, by tables of pointers (the indirect convolution of Dukhan
// 2019).
#pragma once

#include "cpu/neighbours.h"

namespace fastmeta::cpu::FM_ISA {
namespace direct {

// For every pixel of a block, of up to `pixels`: its first neighbour, and itself.
template <class T, class Own>
struct Pixels {
  std::vector<const T*> neighbours;
  std::vector<Own*> own;

  explicit Pixels(int64_t pixels) : neighbours(pixels), own(pixels) {}

  void find(const Images<const T>& from, const Images<Own>& to, int64_t image, const Block& b) {
    const Axis &y = b.at.y, &x = b.at.x;
    const T** neighbour = neighbours.data();
    Own** pixel = own.data();
    b.each_row([&](int64_t i, int64_t row, int64_t) {
      const T* source = from.at(image + i, y.step * row + y.first, x.first);
      Own* target = to.at(image + i, y.begin + y.spacing * row, x.begin);
      for (int64_t j = 0; j < x.size; ++j) {
        *neighbour++ = source + j * x.step * from.c;
        *pixel++ = target + j * x.spacing * to.c;
      }
    });
  }
};

// Output pixels = start + the sum over `count` kernel rows of their neighbours, `depth` elements
// each, times weights.
template <class T>
struct Correlated {
  static constexpr int kMostRows = 8;

  const Pixels<T, T>& pixels;
  const T* start;
  int64_t channels;
  int64_t image_row;  // from a kernel row's neighbours to the next one's
  const T* weights;
  int64_t row;
  int64_t kernel_row;  // from a kernel row's weights to the next one's
  int64_t count;
  int64_t depth;

  template <int R, int V>
  FM_INLINE void add(int64_t pixel, int64_t col, Vec<T> (&sum)[R][V]) const {
    const T* const* a = pixels.neighbours.data() + pixel;
    for (int64_t i = 0; i < count; ++i) {
      const T* own[R];
      unrolled<R>([&](auto r) FM_INLINE { own[r] = a[r] + i * image_row; });
      const T* b = weights + i * kernel_row + col;
      const auto add_element = [&](int64_t k) FM_INLINE {
        Vec<T> right[V];
        unrolled<V>([&](auto v) FM_INLINE { right[v] = load(b + v * kLanes<T>); });
        b += row;
        unrolled<R>([&](auto r) FM_INLINE {
          const Vec<T> left = splat<T>(own[r][k]);
          unrolled<V>([&](auto v) FM_INLINE { sum[r][v] += left * right[v]; });
        });
      };
      // Three at once, which every interior pixel has a multiple of: the compiler increments all
      // pointers in each iteration.
      int64_t k = 0;
      for (; k + 3 <= depth; k += 3)
        unrolled<3>([&](auto next) FM_INLINE { add_element(k + next); });
      for (; k < depth; ++k) add_element(k);
    }
  }
  FM_INLINE const T* start_at(int64_t, int64_t col) const { return start + col; }
  FM_INLINE T* row_at(int64_t pixel) const { return pixels.own[pixel]; }
  template <int V>
  FM_INLINE int64_t last_lanes(int64_t col) const {
    return std::min(kLanes<T>, channels - col - (V - 1) * kLanes<T>);
  }
};

// C += the sum over pixels of the elements of a[k] times b[k].
template <class T>
struct OuterProducts {
  static constexpr int kMostRows = 12;  // at constant distances

  T* c;
  int64_t row;
  const T* const* a;
  int64_t a_begin;
  const T* const* b;
  int64_t pixels;

  template <int R, int V>
  FM_INLINE void add(int64_t first, int64_t col, Vec<T> (&sum)[R][V]) const {
    for (int64_t k = 0; k < pixels; ++k) {
      const T* left = a[k] + a_begin + first;
      Vec<T> right[V];
      unrolled<V>([&](auto v) FM_INLINE { right[v] = load(b[k] + col + v * kLanes<T>); });
      unrolled<R>([&](auto r) FM_INLINE {
        const Vec<T> factor = splat<T>(left[r]);
        unrolled<V>([&](auto v) FM_INLINE { sum[r][v] += factor * right[v]; });
      });
    }
  }
  FM_INLINE const T* start_at(int64_t r, int64_t col) const { return c + r * row + col; }
  FM_INLINE T* row_at(int64_t r) const { return c + r * row; }
  template <int V>
  FM_INLINE int64_t last_lanes(int64_t) const {
    return kLanes<T>;
  }
};

// The weights of one group, in rows of `row` elements, and the initial value of every pixel's sum.
template <class T>
struct Weights {
  const T* rows;
  int64_t row;
  int64_t neighbours;  // of an interior pixel, along x
  const T* start;
};

template <class T>
void correlate(const Images<const T>& from, const Images<T>& to, int64_t image, const Block& b,
               const Weights<T>& w, Pixels<T, T>& pixels) {
  const Axis &y = b.at.y, &x = b.at.x;
  pixels.find(from, to, image, b);
  const int64_t kernel_row = w.neighbours * from.c * w.row;
  const T* weights = w.rows + y.skipped * kernel_row + x.skipped * from.c * w.row;
  multiply_all(Correlated<T>{pixels, w.start, to.c, from.w * from.c, weights, w.row, kernel_row,
                             y.count, x.count * from.c},
               b.pixels(), to.c);
}

}  // namespace direct
}  // namespace fastmeta::cpu::FM_ISA
