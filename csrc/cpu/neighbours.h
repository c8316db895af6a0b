// Maps the output pixels of a convolution to the source pixels they read.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/matrix.h"
#include "fastmeta/conv.h"

namespace fastmeta::cpu::FM_ISA {

// Along one axis: output pixel i of `size` is at begin + spacing * i and sums over `count` source
// pixels from step * i + first on. These are the neighbours of an interior pixel after the first
// `skipped`; neighbour k of an interior pixel has the weight at position[k] of the kernel.
struct Axis {
  int64_t size;
  int64_t begin;
  int64_t spacing;
  int64_t step;
  int64_t first;
  int64_t count;
  int64_t skipped;
  int position[3];
};

inline Axis reads_input(int64_t size, int64_t stride) {
  return {(size - 1) / stride + 1, 0, 1, stride, -1, 3, 0, {0, 1, 2}};
}
// The gradient of the input; with stride 2, even and odd pixels have different neighbours.
inline Axis reads_output(int64_t size, int64_t stride, bool odd) {
  if (stride == 1) return {size, 0, 1, 1, -1, 3, 0, {2, 1, 0}};
  if (odd) return {size / 2, 1, 2, 1, 0, 2, 0, {2, 0, 0}};
  return {(size + 1) / 2, 0, 2, 1, 0, 1, 0, {1, 0, 0}};
}

// Splits an axis into runs of pixels with the same neighbours: those at the edges have fewer, since
// the padding around the `source` is skipped.
inline std::vector<Axis> without_padding(const Axis& whole, int64_t source) {
  std::vector<Axis> runs;
  for (int64_t i = 0; i < whole.size; ++i) {
    const int64_t first = whole.step * i + whole.first;
    const int64_t skipped = std::max<int64_t>(0, -first);
    const int64_t count = std::min(whole.count, source - first) - skipped;
    if (!runs.empty() && runs.back().skipped == skipped && runs.back().count == count) {
      ++runs.back().size;
      continue;
    }
    Axis run = whole;
    run.size = 1;
    run.begin += whole.spacing * i;
    run.first = first + skipped;
    run.count = count;
    run.skipped = skipped;
    runs.push_back(run);
  }
  return runs;
}

struct Neighbours {
  Axis y;
  Axis x;

  int64_t count() const { return y.count * x.count; }
  // Places the weights of each neighbour, rows for `channels`, from `begin` on (see order_weights).
  void place(int64_t begin, int64_t channels, int64_t (&places)[9]) const {
    for (int64_t i = 0; i < y.count; ++i)
      for (int64_t j = 0; j < x.count; ++j)
        places[3 * y.position[i] + x.position[j]] = begin + (i * x.count + j) * channels;
  }
};

template <class T>
struct Images {
  T* data;
  int64_t h;
  int64_t w;
  int64_t c;

  T* at(int64_t image, int64_t y, int64_t x) const { return data + ((image * h + y) * w + x) * c; }
};

// Rows (image, y) of output pixels with the same neighbours.
struct Block {
  Neighbours at;
  int kind;         // of output pixels
  int64_t weights;  // offset of the weights of its kind
  int64_t first;
  int64_t rows;

  int64_t pixels() const { return rows * at.x.size; }
  // Calls body(image, y, number of pixels before this row).
  template <class Body>
  void each_row(const Body& body) const {
    for (int64_t i = 0; i < rows; ++i)
      body((first + i) / at.y.size, (first + i) % at.y.size, i * at.x.size);
  }
};

// Appends all output pixels of `n` images in blocks of up to `limit` pixels, or one row.
inline void append_blocks(const Neighbours& whole, int kind, int64_t weights, int64_t n,
                          int64_t source_h, int64_t source_w, int64_t limit,
                          std::vector<Block>& blocks) {
  const std::vector<Axis> columns = without_padding(whole.x, source_w);
  for (const Axis& y : without_padding(whole.y, source_h))
    for (const Axis& x : columns) {
      const int64_t each = std::max<int64_t>(1, limit / x.size);
      for (int64_t row = 0; row < n * y.size; row += each)
        blocks.push_back({{y, x}, kind, weights, row, std::min(each, n * y.size - row)});
    }
}
inline int64_t max_pixels(const std::vector<Block>& blocks) {
  int64_t limit = 0;
  for (const Block& b : blocks) limit = std::max(limit, b.pixels());
  return limit;
}

template <class T>
inline void copy(const T* from, int64_t size, T* to) {
  for (int64_t i = 0; i < size; i += kLanes<T>) {
    const int64_t n = std::min(size - i, kLanes<T>);
    store_some<T>(to + i, n, load_some<T>(from + i, n, Vec<T>{}));
  }
}
// To a padded row; the padding is zeroed.
template <class T>
inline void copy_padded(const T* from, int64_t size, T* to) {
  for (int64_t i = 0; i < size; i += kLanes<T>)
    store(to + i, load_some<T>(from + i, std::min(size - i, kLanes<T>), Vec<T>{}));
}

// Reorders weights (out, in, 3, 3) into one padded row of output channels per neighbour and source
// channel; for the gradient of the input, `in` and `out` are exchanged. Row c of the weights at
// position p of the kernel goes to place[p] + c.
template <class T>
void order_weights(const T* weight, const ConvShape& shape, const int64_t (&place)[9],
                   bool for_input, T* to) {
  const int64_t in = shape.in, out = shape.out, columns = padded<T>(for_input ? in : out);
  if (!for_input) {
    transpose<T>(
        out, 9 * in, columns, [&](int64_t o) { return weight + 9 * in * o; },
        [&](int64_t k) { return to + (place[k % 9] + k / 9) * columns; });
    return;
  }
  for (int64_t o = 0; o < out; ++o)
    transpose<T>(
        in, 9, columns, [&](int64_t i) { return weight + 9 * (in * o + i); },
        [&](int64_t position) { return to + (place[position] + o) * columns; });
}

}  // namespace fastmeta::cpu::FM_ISA
