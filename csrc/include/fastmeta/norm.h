// norm: BatchNorm with batch statistics, then ReLU, then (optionally) 2x2 max-pooling, as one op.
//
//   d = x - mean,  r = (var + eps)^-1/2,  y = weight r d + bias,  z = pool(max(y, 0))
//
//   forward    z and the biased batch statistics
//   backward   the gradient of <dz, z> with respect to x, weight and bias
//   second     along a direction (u, p, q) of (x, weight, bias): the tangent of z, and that of the
//              gradient at constant dz. The latter is a product with a Hessian, which is symmetric:
//              it serves double backward and forward mode alike
//
// With <.> the mean over a channel of a group, h = r d, and dy = dz where y > 0 (and y is the
// maximum of its window):
//
//   backward   dx = weight r (dy - <dy> - h <dy h>)
//   second     with A = <u dy> - <u><dy>, b = <u h>, c = <dy h>, s = weight r:
//              dz-side   s (u - <u> - h b) + p h + q, where y > 0
//              x-side    k_u u + k_y dy + k_h h - (k_u <u> + k_y <dy>) with k_u = -s r c,
//                        k_y = p r - s r b, k_h = -s r (A - b c) - k_u b - k_y c
//              weight    M r (A - b c)
//
// so each direction is one pass of sums and one elementwise pass over a channel.
#pragma once

#include "fastmeta/parallel.h"
#include "fastmeta/platform.h"

namespace fastmeta {

// Images are (groups * n, h, w, c) in memory, channels last, float32 or float64; pooled ones
// (groups * n, h / 2, w / 2, c). A group is a task's images, with statistics of its own.
struct NormInput {
  DType dtype;
  int64_t groups;
  int64_t n;
  int64_t c;
  int64_t h;
  int64_t w;
  double eps;
  int32_t pool;
  const void* x;
  const void* weight;  // (groups, c), like all below without a comment
  const void* bias;
  bool linear = false;  // without ReLU; on the CPU alone
};

struct NormForwardArgs {
  NormInput in;
  void* z;
  void* mean;
  void* var;
};

struct NormBackwardArgs {
  NormInput in;
  const void* mean;
  const void* var;
  const void* dz;
  void* dx;
  void* dweight;
  void* dbias;
};

struct NormSecondArgs {
  NormInput in;
  const void* mean;
  const void* var;
  const void* dz;  // null where only out_z is wanted
  const void* u;   // as x
  const void* p;
  const void* q;
  void* out_z;  // as dz, or null
  void* out_x;  // as x, or null together with out_weight
  void* out_weight;
};

// The coefficients of the elementwise pass over a channel, for every device.
struct NormBackwardCoef {
  double dy, d, one;
  double dweight;
};
FM_HD NormBackwardCoef norm_backward_coef(double m, double r, double weight, double sum_dy,
                                          double sum_dyd) {
  const double s = weight * r, c = r * sum_dyd;
  return {s, -s * r * c / m, -s * sum_dy / m, c};
}

struct NormSums {
  double u, ud, dy, dyd, udy;
};
struct NormSecondCoef {
  double z_u, z_d, z_one;
  double x_u, x_dy, x_d, x_one;
  double weight;
};
FM_HD NormSecondCoef norm_second_coef(double m, double r, double weight, double p, double q,
                                      const NormSums& sums) {
  const double s = weight * r;
  const double u = sums.u / m, dy = sums.dy / m;
  const double b = r * sums.ud / m, c = r * sums.dyd / m;
  const double rest = sums.udy / m - u * dy - b * c;
  const double k_u = -s * r * c, k_y = p * r - s * r * b;
  const double k_h = -s * r * rest - k_u * b - k_y * c;
  return {s, (p - s * b) * r, q - s * u, k_u, k_y, k_h * r, -(k_u * u + k_y * dy), m * r * rest};
}

}  // namespace fastmeta
