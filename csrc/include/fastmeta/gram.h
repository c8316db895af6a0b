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
  double* partial;  // (chunks, T, T); only j <= i is used
  void* out;        // (S, T, T) of Acc<dtype>
};

namespace cuda {
int gram(const GramArgs& args, void* stream);
}

}  // namespace fastmeta
