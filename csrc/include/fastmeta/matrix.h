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

// Chunks of a segment; an empty one has an empty chunk on CUDA, whose block writes the zeros.
inline int64_t count_chunks(Segments segments, int64_t segment, int64_t width) {
  const int64_t columns = segments.bounds[segment + 1] - segments.bounds[segment];
  return columns > 0 ? (columns + width - 1) / width : 1;
}

// Of all segments.
inline int64_t count_chunks(Segments segments, int64_t cols, Cut cut) {
  const int64_t width = chunk_width(cols, cut);
  int64_t count = 0;
  for (int64_t s = 0; s < segments.count; ++s) count += count_chunks(segments, s, width);
  return count;
}

// Memory between the two stages of a sum over chunks, in doubles: `sums` of each chunk, and behind
// them `lines` tickets of each chunk and segment, by which CUDA's blocks find out who is last.
inline int64_t count_partials(Segments segments, int64_t cols, Cut cut, int64_t sums,
                              int64_t lines) {
  const int64_t chunks = count_chunks(segments, cols, cut);
  return chunks * sums + (lines * (chunks + segments.count) + 1) / 2;
}

}  // namespace fastmeta
