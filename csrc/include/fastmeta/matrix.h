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
struct Cut {
  int64_t narrowest;
  int64_t most;  // chunks of a row, of one segment
};
constexpr Cut kCpuCut{4096, 512};
constexpr Cut kCudaCut{1024, 1024};  // many blocks even of short rows (estimated, not measured)

inline int64_t chunk_width(int64_t cols, Cut cut) {
  const int64_t width = (cols / cut.most + 1023) / 1024 * 1024;
  return width > cut.narrowest ? width : cut.narrowest;
}

inline std::vector<Chunk> make_chunks(Segments segments, int64_t cols) {
  const int64_t width = chunk_width(cols, kCpuCut);
  std::vector<Chunk> chunks;
  for (int64_t s = 0; s < segments.count; ++s) {
    const int64_t stop = segments.bounds[s + 1];
    for (int64_t begin = segments.bounds[s]; begin < stop; begin += width)
      chunks.push_back({s, begin, begin + width < stop ? begin + width : stop});
  }
  return chunks;
}

inline int64_t count_chunks(Segments segments, int64_t cols, Cut cut) {
  const int64_t width = chunk_width(cols, cut);
  int64_t count = 0;
  for (int64_t s = 0; s < segments.count; ++s)
    count += (segments.bounds[s + 1] - segments.bounds[s] + width - 1) / width;
  return count;
}

}  // namespace fastmeta
