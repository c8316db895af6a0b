// A packed (T, P) buffer as kernels take it, and its partition into chunks.
#pragma once

#include <cstdint>
#include <vector>

namespace fastmeta {

// T rows (tasks) of P columns (parameters); the column stride is one.
struct Matrix {
  const void* data;
  int64_t rows;
  int64_t cols;
  int64_t stride;  // elements between rows
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

// How segments are divided into chunks: by sizes alone, never by the number of threads, which makes
// results reproducible. Long rows get wider chunks, which bounds the memory of partial sums.
struct Chunking {
  int64_t min_width;
  int64_t max_chunks;  // per row, of one segment
};
constexpr Chunking kCpuChunking{4096, 512};
// Many blocks even for short rows (estimated, not measured).
constexpr Chunking kCudaChunking{1024, 1024};

inline int64_t chunk_width(int64_t cols, Chunking chunking) {
  const int64_t width = (cols / chunking.max_chunks + 1023) / 1024 * 1024;
  return width > chunking.min_width ? width : chunking.min_width;
}

inline std::vector<Chunk> make_chunks(Segments segments, int64_t cols) {
  const int64_t width = chunk_width(cols, kCpuChunking);
  std::vector<Chunk> chunks;
  for (int64_t s = 0; s < segments.count; ++s) {
    const int64_t stop = segments.bounds[s + 1];
    for (int64_t begin = segments.bounds[s]; begin < stop; begin += width)
      chunks.push_back({s, begin, begin + width < stop ? begin + width : stop});
  }
  return chunks;
}

// Chunks of a segment. An empty segment has one empty chunk on CUDA, whose block writes the zeros.
inline int64_t count_chunks(Segments segments, int64_t segment, int64_t width) {
  const int64_t columns = segments.bounds[segment + 1] - segments.bounds[segment];
  return columns > 0 ? (columns + width - 1) / width : 1;
}

// Of all segments.
inline int64_t count_chunks(Segments segments, int64_t cols, Chunking chunking) {
  const int64_t width = chunk_width(cols, chunking);
  int64_t count = 0;
  for (int64_t s = 0; s < segments.count; ++s) count += count_chunks(segments, s, width);
  return count;
}

// Scratch of a two-stage sum over chunks, in doubles: `sums` per chunk, followed by `grid_rows`
// tickets per chunk and segment, by which CUDA blocks determine which of them is the last.
inline int64_t count_partials(Segments segments, int64_t cols, Chunking chunking, int64_t sums,
                              int64_t grid_rows) {
  const int64_t chunks = count_chunks(segments, cols, chunking);
  return chunks * sums + (grid_rows * (chunks + segments.count) + 1) / 2;
}

}  // namespace fastmeta
