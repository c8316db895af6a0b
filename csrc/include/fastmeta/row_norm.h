// row_norm: layer normalisation or RMS normalisation of rows, with first and second derivatives.
// Per row, with <.> the mean over its elements and m = <x>, or 0 for RMS normalisation:
//
//   r = (<(x - m)^2> + eps)^-1/2,  h = r (x - m),  y = w h + b
//
//   forward    y and the row statistics m and r
//   backward   the gradient of <dy, y> with respect to x, w and b: with g = w dy,
//                dx = r (g - <g> - h <g h>),  dw = sum dy h,  db = sum dy   (sums over rows)
//   tangent    the tangent of y along (x., w., b.): h. = r (x. - <x.> - h <h x.>),
//                y. = w h. + h w. + b.
//   second     y., and the tangents of dx, dw and db along (x., w., b.) and, if given, dy.:
//                g. = w dy. + w. dy,
//                dx. = r (g. - <g.> - h. <g h> - h (<g. h> + <g h.>)) - r <h x.> dx,
//                dw. = sum dy. h + dy h.,  db. = sum dy.
//              Without dy. this is a product with the Hessian of <dy, y>, which is symmetric: it
//              serves double backward (the gradient with respect to dy is y.) and forward mode
//              alike.
//
// <g>, <g.> and <x.> are absent for RMS normalisation.
#pragma once

#include "fastmeta/parallel.h"
#include "fastmeta/platform.h"

namespace fastmeta {

// Contiguous. The weights of each group are applied to its rows.
struct RowNormInput {
  DType dtype;
  DType weight_dtype;  // dtype, or float for half precision; of all tensors (groups, width)
  int64_t groups;
  int64_t rows;  // of a group
  int64_t width;
  int32_t centred;     // layer normalisation
  const void* x;       // (groups, rows, width)
  const void* weight;  // (groups, width)
  void* stats;         // (groups, 2, rows) in the accumulation dtype: m and r
};

struct RowNormForwardArgs {
  RowNormInput in;
  double eps;
  const void* bias;
  void* y;
};

struct RowNormBackwardArgs {
  RowNormInput in;
  const void* dy;
  void* scratch;
  void* dx;
  void* dweight;
  void* dbias;
};

struct RowNormSecondArgs {
  RowNormInput in;
  const void* dy;
  const void* tdy;  // or null: zero
  const void* tx;
  const void* tweight;
  const void* tbias;
  void* scratch;
  void* ty;
  void* dx;  // null together with dy and the next two: the tangent alone
  void* dweight;
  void* dbias;
};

// The means over a row that second derivatives need, and the element they give. V is A or a vector
// of it.
template <class A>
struct RowNormMeans {
  A r;
  A x, hx;    // of x. and h x.
  A g, gh;    // of g and g h
  A gx;       // of g x.
  A tg, tgh;  // of g. and g. h

  // Leaves out what layer normalisation has and RMS normalisation does not.
  FM_HD void uncentre() { x = g = tg = A(0); }
  template <class V>
  FM_HD V th(V tx, V h) const {
    return r * (tx - x - h * hx);
  }
  template <class V>
  FM_HD V tdx(V g_, V tg_, V h, V th) const {
    // <g h.> = r (<g x.> - <g> <x.> - <g h> <h x.>)
    const A rest = tgh + r * (gx - g * x - gh * hx);
    return r * (tg_ - tg - th * gh - h * rest) - r * r * hx * (g_ - g - h * gh);
  }
};

// Gradients of weights are sums over chunks of rows, whose number depends on sizes alone.
FM_HD int64_t row_norm_chunk(int64_t rows) {
  constexpr int64_t kChunks = 64, kMinRows = 8;
  const int64_t size = (rows + kChunks - 1) / kChunks;
  return size > kMinRows ? size : kMinRows;
}
FM_HD int64_t row_norm_chunks(int64_t rows) {
  return (rows + row_norm_chunk(rows) - 1) / row_norm_chunk(rows);
}
// Rows of partial sums are whole vectors.
FM_HD int64_t row_norm_padded(int64_t width) {
  return (width + 15) / 16 * 16;
}

// Elements of the scratch in the accumulation dtype: the partial sums of two weights, and on CUDA
// two means of each row.
inline int64_t row_norm_scratch(const RowNormInput& in) {
  return in.groups * (row_norm_chunks(in.rows) * 2 * row_norm_padded(in.width) + 2 * in.rows);
}

namespace cuda {
int row_norm_forward(const RowNormForwardArgs& args, void* stream);
int row_norm_backward(const RowNormBackwardArgs& args, void* stream);
int row_norm_second(const RowNormSecondArgs& args, void* stream);
}  // namespace cuda

}  // namespace fastmeta
