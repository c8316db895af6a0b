// Similarities of task gradients without all pairs, each in one pass over the packed buffers.
//
//   row_similarity   (<a_i, b_i>, |a_i|^2, |b_i|^2)          per segment, out (T, S, 3)
//   mean_similarity  (<g_i, sum_j g_j>, |g_i|^2)             out (T, 2)
//
// Two stages, both in a fixed order: partial sums of each chunk, then their sum in double.
#pragma once

#include "fastmeta/matrix.h"
#include "fastmeta/parallel.h"
#include "fastmeta/platform.h"

namespace fastmeta {

struct RowSimilarityArgs {
  DType dtype;
  Matrix a;
  Matrix b;
  Segments segments;
  double* partial;  // (chunks, T, 3), and tickets
  void* out;        // (T, S, 3) of Acc<dtype>
};

struct MeanSimilarityArgs {
  DType dtype;
  Matrix g;
  double* partial;  // (chunks, T, 2), and tickets
  void* out;        // (T, 2) of Acc<dtype>
};

inline int64_t count_row_partials(Segments segments, Matrix a, Chunking chunking) {
  return count_partials(segments, a.cols, chunking, a.rows * 3, a.rows);
}

constexpr int kMeanRows = 128;  // rows per CUDA block; more rows take more blocks

inline int64_t count_mean_grid_rows(int64_t tasks) {
  return (tasks + kMeanRows - 1) / kMeanRows;
}
inline int64_t count_mean_partials(Matrix g, Chunking chunking) {
  const int64_t bounds[2] = {0, g.cols};
  return count_partials({bounds, 1}, g.cols, chunking, g.rows * 2, count_mean_grid_rows(g.rows));
}

namespace cuda {
int row_similarity(const RowSimilarityArgs& args, void* stream);
int mean_similarity(const MeanSimilarityArgs& args, void* stream);
}  // namespace cuda

}  // namespace fastmeta
