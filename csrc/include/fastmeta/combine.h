// combine: the weighted sum of task gradients, m = sum_i sum_b coef[i, s(p), b] * g_b[i, p],
// over one buffer (task weights) or two (the closed-form GSL gradient of query and support
// gradients), written directly into the tensors of a parameter list. Rows are added in task order,
// so with unit weights the result is bitwise that of repeated in-place accumulation.
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
  void* const* out;   // one tensor per piece, in column order
  Segments pieces;    // the columns of each tensor
};

// Up to `max_columns` columns inside one segment of coef and one output tensor.
struct CombinePiece {
  int64_t segment;
  int64_t begin;
  int64_t n;
  int64_t tensor;
};

inline std::vector<CombinePiece> make_pieces(const CombineArgs& args, int64_t max_columns) {
  std::vector<CombinePiece> pieces;
  const int64_t *segments = args.segments.bounds, *tensors = args.pieces.bounds;
  int64_t s = 0;
  for (int64_t t = 0; t < args.pieces.count; ++t)
    for (int64_t begin = tensors[t]; begin < tensors[t + 1];) {
      while (segments[s + 1] <= begin) ++s;
      const int64_t end = segments[s + 1] < tensors[t + 1] ? segments[s + 1] : tensors[t + 1];
      const int64_t n = end - begin < max_columns ? end - begin : max_columns;
      pieces.push_back({s, begin, n, t});
      begin += n;
    }
  return pieces;
}

// The address of the first column of a piece; T is the storage type.
template <class T>
T* piece_out(const CombineArgs& args, const CombinePiece& piece) {
  return static_cast<T*>(args.out[piece.tensor]) + piece.begin - args.pieces.bounds[piece.tensor];
}

namespace cuda {
int combine(const CombineArgs& args, void* stream);
}  // namespace cuda

}  // namespace fastmeta
