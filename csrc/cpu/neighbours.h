// Which pixels of an image a convolution reads for which pixels of another.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/matrix.h"
#include "fastmeta/conv.h"

namespace fastmeta::cpu::FM_ISA {

// Along one axis: the i-th of `size` output pixels lies at begin + apart * i, and is a sum over
// `count` neighbours of the source, from pixel step * i + first on: those after the first `skipped`
// ones of a pixel in the middle, of which the k-th has the weight of place[k] in the kernel.
struct Axis {
  int64_t size;
  int64_t begin;
  int64_t apart;
  int64_t step;
  int64_t first;
  int64_t count;
  int64_t skipped;
  int place[3];
};

inline Axis reads_input(int64_t size, int64_t stride) {
  return {(size - 1) / stride + 1, 0, 1, stride, -1, 3, 0, {0, 1, 2}};
}
// The gradient in the input; with stride 2, its even and its odd pixels have different neighbours.
inline Axis reads_output(int64_t size, int64_t stride, bool odd) {
  if (stride == 1) return {size, 0, 1, 1, -1, 3, 0, {2, 1, 0}};
  if (odd) return {size / 2, 1, 2, 1, 0, 2, 0, {2, 0, 0}};
  return {(size + 1) / 2, 0, 2, 1, 0, 1, 0, {1, 0, 0}};
}

// The same in runs of pixels with the same neighbours: the first and the last lack some, which the
// `source` has no pixels for.
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
    run.begin += whole.apart * i;
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
  int kind;         // of pixels
  int64_t weights;  // where those of its kind begin
  int64_t first;
  int64_t rows;

  int64_t pixels() const { return rows * at.x.size; }
  // body(image, y, pixels before this row)
  template <class Body>
  void each_row(const Body& body) const {
    for (int64_t i = 0; i < rows; ++i)
      body((first + i) / at.y.size, (first + i) % at.y.size, i * at.x.size);
  }
};

// All output pixels of `n` images, in blocks of `most` pixels, or of one row.
inline void cut(const Neighbours& whole, int kind, int64_t weights, int64_t n, int64_t source_h,
                int64_t source_w, int64_t most, std::vector<Block>& blocks) {
  const std::vector<Axis> columns = without_padding(whole.x, source_w);
  for (const Axis& y : without_padding(whole.y, source_h))
    for (const Axis& x : columns) {
      const int64_t each = std::max<int64_t>(1, most / x.size);
      for (int64_t row = 0; row < n * y.size; row += each)
        blocks.push_back({{y, x}, kind, weights, row, std::min(each, n * y.size - row)});
    }
}
inline int64_t most_pixels(const std::vector<Block>& blocks) {
  int64_t most = 0;
  for (const Block& b : blocks) most = std::max(most, b.pixels());
  return most;
}

template <class T>
inline void copy(const T* from, int64_t size, T* to) {
  for (int64_t i = 0; i < size; i += kLanes<T>) {
    const int64_t n = std::min(size - i, kLanes<T>);
    store_some<T>(to + i, n, load_some<T>(from + i, n, Vec<T>{}));
  }
}
// To a padded row, with zeros behind.
template <class T>
inline void copy_padded(const T* from, int64_t size, T* to) {
  for (int64_t i = 0; i < size; i += kLanes<T>)
    store(to + i, load_some<T>(from + i, std::min(size - i, kLanes<T>), Vec<T>{}));
}

// A row (out, in, 3, 3)'s neighbour and channel of the source each, of padded `columns`: for
// outputs as they are, for inputs with `in` and `out` exchanged.
template <class T>
void order_weights(const T* weight, const ConvShape& shape, const Neighbours& whole, bool for_input,
                   T* to) {
  const int64_t columns = padded<T>(for_input ? shape.in : shape.out);
  const int64_t channels = for_input ? shape.out : shape.in;
  int64_t row_of[9];
  for (int64_t& row : row_of) row = -1;
  for (int64_t i = 0; i < whole.y.count; ++i)
    for (int64_t j = 0; j < whole.x.count; ++j)
      row_of[3 * whole.y.place[i] + whole.x.place[j]] = (i * whole.x.count + j) * channels;
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
