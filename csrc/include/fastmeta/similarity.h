// Similarities of task gradients that need no pairs, each in one pass over the packed buffers.
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
  double* partial;  // (chunks, T, 3)
  void* out;        // (T, S, 3) of Acc<dtype>
};

struct MeanSimilarityArgs {
  DType dtype;
  Matrix g;
  double* partial;  // (chunks, T, 2)
  void* out;        // (T, 2) of Acc<dtype>
};

namespace cuda {
int row_similarity(const RowSimilarityArgs& args, void* stream);
int mean_similarity(const MeanSimilarityArgs& args, void* stream);
}  // namespace cuda

}  // namespace fastmeta
