// Runs of pixels of channels-last images, and ReLU and pooling over a run, forward and backward.
#pragma once

#include <algorithm>

#include "cpu/channels.h"
#include "fastmeta/norm.h"
#include "fastmeta/window.h"

namespace fastmeta::cpu::FM_ISA {

// y = slope (x - mean) + bias, for a vector of channels, and perhaps ReLU.
template <class T>
struct Affine {
  Vec<T> mean;
  Vec<T> slope;
  Vec<T> bias;
  Vec<T> threshold;  // zero; without ReLU NaN, to which nothing compares as less or equal
  Vec<T> y(Vec<T> d) const { return slope * d + bias; }
  // `value` where y is above the threshold. NaN stays NaN.
  Vec<T> passed(Vec<T> y, Vec<T> value) const { return y <= threshold ? Vec<T>{} : value; }
};

// Splits the pixels into runs, short enough for sums in T: with pooling, two rows of an image (or
// the last one, if their number is odd). Runs and chunks of runs are numbered through all groups,
// and none crosses a group.
template <bool kPool>
struct Runs {
  static constexpr int64_t kPixels = 128;
  int64_t groups, w, c, rows, bands;
  int64_t pixels, count, chunk,
      chunks;  // per group: pixels, runs; runs per chunk; chunks per group

  explicit Runs(const NormInput& in)
      : groups(in.groups),
        w(in.w),
        c(in.c),
        rows(in.h),
        bands((in.h + 1) / 2),
        pixels(in.n * in.h * in.w) {
    constexpr int64_t kWorthwhile =
        32768;  // minimum elements per chunk, the unit of work of a thread
    count = kPool ? in.n * bands : (pixels + kPixels - 1) / kPixels;
    chunk = kWorthwhile / ((kPool ? 2 * w : kPixels) * c) + 1;
    chunks = (count + chunk - 1) / chunk;
  }
  // Offset from the first pixel of a pooling window to its pixel k, in row order.
  int64_t in_window(int64_t k) const { return (k / 2 * w + k % 2) * c; }
  // The first pixel of a run without pooling.
  int64_t first_pixel(int64_t run) const { return run / count * pixels + run % count * kPixels; }
  // The runs of chunk k are [begin(k), end(k)).
  int64_t begin(int64_t k) const { return k / chunks * count + k % chunks * chunk; }
  int64_t end(int64_t k) const { return std::min(begin(k) + chunk, (k / chunks + 1) * count); }
};

// Calls body(at, d, dy, chain) for every pixel of a run: its offset, its difference to the mean,
// the gradient of its y, and the accumulator to use. Pointers are those of the first channel of the
// lanes; dz may be null.
template <class T, class Lanes, class Body>
[[gnu::always_inline]] inline void each_pixel(const Runs<false>& runs, int64_t run, Lanes lanes,
                                              const T* x, const T* dz, const Affine<T>& f,
                                              const Body& body) {
  const int64_t begin = runs.first_pixel(run);
  const int64_t end = std::min(begin + runs.kPixels, (run / runs.count + 1) * runs.pixels);
  const auto pixel = [&](int64_t at, auto chain) {
    const Vec<T> d = lanes.load(x + at) - f.mean;
    body(at, d, dz ? f.passed(f.y(d), lanes.load(dz + at)) : Vec<T>{}, chain);
  };
  int64_t p = begin;
  for (; p + 2 <= end; p += 2) {
    pixel(p * runs.c, First{});
    pixel((p + 1) * runs.c, Second{});
  }
  if (p < end) pixel(p * runs.c, First{});
}

// Calls window(at, z) for the pooling windows of a run, and single(at) for the pixels at odd edges
// that are in no window.
template <class OnWindow, class OnSingle>
[[gnu::always_inline]] inline void each_window(const Runs<true>& runs, int64_t run,
                                               const OnWindow& window, const OnSingle& single) {
  const int64_t image = run / runs.bands, band = run % runs.bands;
  const int64_t row = runs.w * runs.c;
  const int64_t first = (image * runs.rows + 2 * band) * row;
  if (2 * band + 1 == runs.rows) {
    for (int64_t j = 0; j < runs.w; ++j) single(first + j * runs.c);
    return;
  }
  const int64_t out = (image * (runs.rows / 2) + band) * (runs.w / 2) * runs.c;
  for (int64_t j = 0; j < runs.w / 2; ++j) window(first + 2 * j * runs.c, out + j * runs.c);
  if (runs.w % 2) {
    single(first + row - runs.c);
    single(first + 2 * row - runs.c);
  }
}

template <class T, class Lanes, class Body>
[[gnu::always_inline]] inline void each_pixel(const Runs<true>& runs, int64_t run, Lanes lanes,
                                              const T* x, const T* dz, const Affine<T>& f,
                                              const Body& body) {
  each_window(
      runs, run,
      [&](int64_t at, int64_t z) {
        Window<Vec<T>> d, y, dy{};
        for (int k = 0; k < 4; ++k) {
          d.pixel[k] = lanes.load(x + at + runs.in_window(k)) - f.mean;
          y.pixel[k] = f.y(d.pixel[k]);
        }
        if (dz) dy = placed(y, f.passed(largest(y), lanes.load(dz + z)));
        body(at + runs.in_window(0), d.pixel[0], dy.pixel[0], First{});
        body(at + runs.in_window(1), d.pixel[1], dy.pixel[1], Second{});
        body(at + runs.in_window(2), d.pixel[2], dy.pixel[2], First{});
        body(at + runs.in_window(3), d.pixel[3], dy.pixel[3], Second{});
      },
      [&](int64_t at) { body(at, lanes.load(x + at) - f.mean, Vec<T>{}, First{}); });
}

// Writes z of a run from value(at, d) of its pixels where ReLU passes y (and y is the maximum of
// its window).
template <class T, class Lanes, class Value>
[[gnu::always_inline]] inline void write_z(const Runs<false>& runs, int64_t run, Lanes lanes,
                                           const T* x, T* z, const Affine<T>& f,
                                           const Value& value) {
  each_pixel<T>(runs, run, lanes, x, nullptr, f, [&](int64_t at, Vec<T> d, Vec<T>, auto) {
    lanes.store(z + at, f.passed(f.y(d), value(at, d)));
  });
}
template <class T, class Lanes, class Value>
[[gnu::always_inline]] inline void write_z(const Runs<true>& runs, int64_t run, Lanes lanes,
                                           const T* x, T* z, const Affine<T>& f,
                                           const Value& value) {
  each_window(
      runs, run,
      [&](int64_t at, int64_t to) {
        Window<Vec<T>> y, values;
        for (int k = 0; k < 4; ++k) {
          const Vec<T> d = lanes.load(x + at + runs.in_window(k)) - f.mean;
          y.pixel[k] = f.y(d);
          values.pixel[k] = value(at + runs.in_window(k), d);
        }
        lanes.store(z + to, f.passed(largest(y), picked(y, values)));
      },
      [](int64_t) {});
}

}  // namespace fastmeta::cpu::FM_ISA
