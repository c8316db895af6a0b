// combine: the weighted sum of task gradients, m = sum_i sum_b coef[i, s(p), b] * g_b[i, p],
// over one buffer (task weights) or two (the closed-form GSL gradient of query and support rows),
// written straight into the tensors of a parameter list. Rows are added in task order, so with unit
// weights the result has the bits of repeated in-place accumulation.
#pragma once

#include "fastmeta/matrix.h"
#include "fastmeta/parallel.h"
#include "fastmeta/platform.h"

namespace fastmeta {

struct CombineArgs {
  DType dtype;
  Matrix g[2];
  int64_t buffers;    // 1 or 2
  const void* coef;   // (T, S, buffers) of Acc<dtype>, contiguous
  Segments segments;  // of coef
  void* const* out;   // one tensor a piece, in column order
  Segments pieces;    // the columns each tensor takes
};

namespace cuda {
int combine(const CombineArgs& args, void* stream);
}  // namespace cuda

}  // namespace fastmeta
