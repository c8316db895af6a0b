// Direct convolution as matrix products of neighbouring pixels and weights, skipping the padding.
// Long rows of pixels are multiplied in place; short ones are gathered first (im2col).
#pragma once

#include "cpu/neighbours.h"

namespace fastmeta::cpu::FM_ISA {
namespace direct {

// Gathers kernel row k of the neighbours of a block's pixels: x.count * c elements per pixel.
template <class T>
void gather(const Images<const T>& from, int64_t image, const Block& block, int64_t k, T* to,
            int64_t to_row) {
  const Axis &y = block.at.y, &x = block.at.x;
  block.each_row([&](int64_t i, int64_t row, int64_t before) {
    const T* source = from.at(image + i, y.step * row + y.first + k, x.first);
    for (int64_t j = 0; j < x.size; ++j)
      copy(source + j * x.step * from.c, x.count * from.c, to + (before + j) * to_row);
  });
}

// The weights of one group, in rows of `row` elements, and the initial value of every pixel's sum.
template <class T>
struct Weights {
  const T* rows;
  int64_t row;
  int64_t neighbours;  // of an interior pixel, along x
  const T* start;

  const T* of(const Axis& y, const Axis& x, int64_t k, int64_t channels) const {
    return rows + ((y.skipped + k) * neighbours + x.skipped) * channels * row;
  }
};

// Pixels times weights, into rows with stride `to_row`.
template <class T>
void multiply_rows(const T* from, int64_t from_row, int64_t from_y, int64_t count, const Block& b,
                   int64_t channels, const Weights<T>& w, T* to, int64_t to_row, int64_t columns) {
  const Axis &y = b.at.y, &x = b.at.x;
  const int64_t depth = x.count * channels;
  const auto factors = [&](int64_t k) -> Factors<T> {
    return {from + k * from_y, from_row, 1, w.of(y, x, k, channels), w.row, depth};
  };
  const Start<T> start{w.start, 0, 1};
  if (y.count == 3)
    multiply<T, 3>(to, to_row, count, columns, start, {factors(0), factors(1), factors(2)});
  else if (y.count == 2)
    multiply<T, 2>(to, to_row, count, columns, start, {factors(0), factors(1)});
  else
    multiply<T, 1>(to, to_row, count, columns, start, {factors(0)});
}

template <class T>
void correlate(const Images<const T>& from, const Images<T>& to, int64_t image, const Block& b,
               const Weights<T>& w, T* buffer) {
  const Axis &y = b.at.y, &x = b.at.x;
  const bool whole = w.row == to.c;  // the channels fill their vectors
  const auto pixel = [&](int64_t i, int64_t row, int64_t j) {
    return to.at(image + i, y.begin + y.spacing * row, x.begin + x.spacing * j);
  };
  const auto spread = [&](int64_t i, int64_t row, const T* sums) {
    for (int64_t j = 0; j < x.size; ++j) copy(sums + j * w.row, to.c, pixel(i, row, j));
  };
  if (x.size >= 2 * kTileRows) {
    b.each_row([&](int64_t i, int64_t row, int64_t) {
      const T* source = from.at(image + i, y.step * row + y.first, x.first);
      T* sums = whole ? pixel(i, row, 0) : buffer;
      multiply_rows(source, x.step * from.c, from.w * from.c, x.size, b, from.c, w, sums,
                    whole ? x.spacing * to.c : w.row, to.c);
      if (!whole) spread(i, row, sums);
    });
    return;
  }
  const int64_t run = x.count * from.c, depth = y.count * run;
  T* gathered = buffer + b.pixels() * w.row;
  for (int64_t k = 0; k < y.count; ++k) gather(from, image, b, k, gathered + k * run, depth);
  multiply_rows<T>(gathered, depth, run, b.pixels(), b, from.c, w, buffer, w.row, to.c);
  b.each_row(
      [&](int64_t i, int64_t row, int64_t before) { spread(i, row, buffer + before * w.row); });
}

}  // namespace direct
}  // namespace fastmeta::cpu::FM_ISA
