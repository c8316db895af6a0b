// gram: G[s, i, j] = <g_i, g_j> over the columns of segment s, in one pass over the (T, P) buffer.
// Norms, cosines and squared distances of all pairs follow from it.
//
// Two stages, both in a fixed order: partial sums of each chunk, then their sum in double.
#pragma once

#include "fastmeta/matrix.h"
#include "fastmeta/parallel.h"
#include "fastmeta/platform.h"

namespace fastmeta {

struct GramArgs {
  DType dtype;
  Matrix g;
  Segments segments;
  double* partial;  // (chunks, T, T), only j <= i used, and tickets
  void* out;        // (S, T, T) of Acc<dtype>
};

// Rows and columns of the tile of the lower triangle that a CUDA block sums.
constexpr int kGramTile = 32;

inline int64_t count_gram_tiles(int64_t tasks) {
  const int64_t side = (tasks + kGramTile - 1) / kGramTile;
  return side * (side + 1) / 2;
}
inline int64_t count_gram_partials(Segments segments, Matrix g, Chunking chunking) {
  return count_partials(segments, g.cols, chunking, g.rows * g.rows, count_gram_tiles(g.rows));
}

namespace cuda {
int gram(const GramArgs& args, void* stream);
}

}  // namespace fastmeta
