// conv: 3x3 convolution with padding 1 and stride 1 or 2, and its gradients.
//
//   forward   y = C(x, w) + b
//   input     dx = D(dy, w), the gradient of <dy, C(x, w)> with respect to x
//   weight    dw = W(x, dy), its gradient with respect to w; and db, the sum of dy
//
// All three are linear in each factor, and the gradients of each are the other two.
#pragma once

#include "fastmeta/parallel.h"
#include "fastmeta/platform.h"

namespace fastmeta {

// Images are (groups * n, height, width, channels) in memory, channels last, float32 or float64;
// each group has its own weights, (out, in, 3, 3), and bias, (out).
struct ConvShape {
  DType dtype;
  int64_t groups;
  int64_t n;  // images per group
  int64_t h;  // of the input
  int64_t w;
  int64_t in;
  int64_t out;
  int64_t stride;

  int64_t out_h() const { return (h - 1) / stride + 1; }
  int64_t out_w() const { return (w - 1) / stride + 1; }
};

struct ConvForwardArgs {
  ConvShape shape;
  const void* x;
  const void* weight;
  const void* bias;  // or null
  void* y;
};

struct ConvInputArgs {
  ConvShape shape;
  const void* dy;
  const void* weight;
  void* dx;
};

struct ConvWeightArgs {
  ConvShape shape;
  const void* x;
  const void* dy;
  void* dweight;
  void* dbias;
};

}  // namespace fastmeta
