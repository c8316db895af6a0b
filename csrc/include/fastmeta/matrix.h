// What a kernel sees of a packed (T, P) buffer: pointers, sizes and strides only.
#pragma once

#include <cstdint>
#include <vector>

namespace fastmeta {

// T rows (tasks) of P columns (parameters); the column stride is one.
struct Matrix {
  const void* data;
  int64_t rows;
  int64_t cols;
  int64_t stride;  // elements from one row to the next
};

// Segments (layers) of the columns: bounds[0] = 0 <= bounds[1] <= ... <= bounds[count] = P.
// Host memory on every device.
struct Segments {
  const int64_t* bounds;
  int64_t count;
};

// A range of columns inside one segment: the unit of work of a reduction.
struct Chunk {
  int64_t segment;
  int64_t begin;
  int64_t end;
};

// The partition depends on sizes alone, never on the number of threads: that makes the results
// reproducible. Long rows get wider chunks, which bounds the space for partial sums.
inline int64_t chunk_width(int64_t cols) {
  constexpr int64_t kNarrowest = 4096;
  constexpr int64_t kMost = 512;
  const int64_t width = (cols / kMost + 1023) / 1024 * 1024;
  return width > kNarrowest ? width : kNarrowest;
}

inline std::vector<Chunk> make_chunks(Segments segments, int64_t cols) {
  const int64_t width = chunk_width(cols);
  std::vector<Chunk> chunks;
  for (int64_t s = 0; s < segments.count; ++s) {
    const int64_t stop = segments.bounds[s + 1];
    for (int64_t begin = segments.bounds[s]; begin < stop; begin += width)
      chunks.push_back({s, begin, begin + width < stop ? begin + width : stop});
  }
  return chunks;
}

inline int64_t count_chunks(Segments segments, int64_t cols) {
  const int64_t width = chunk_width(cols);
  int64_t count = 0;
  for (int64_t s = 0; s < segments.count; ++s)
    count += (segments.bounds[s + 1] - segments.bounds[s] + width - 1) / width;
  return count;
}

}  // namespace fastmeta
