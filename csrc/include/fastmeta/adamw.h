// AdamW's update of many tensors in one launch, and its vector-Jacobian product.
//
//   adamw_step     mean'   = b1 mean + (1 - b1) grad
//                  square' = b2 square + (1 - b2) grad^2
//                  theta'  = keep theta - rate mean' / (sqrt(square' / bias_2) + eps)
//   adamw_adjoint  from derivatives of a scalar with respect to theta', mean' and square' to those
//                  with respect to theta, grad, mean and square
//
// The root of zero, where every gradient so far was zero, has the derivative zero.
#pragma once

#include "fastmeta/parallel.h"
#include "fastmeta/platform.h"

namespace fastmeta {

// keep = 1 - lr weight_decay, rate = lr / (1 - b1^k) and bias_2 = 1 - b2^k in step k.
template <class A>
struct AdamwRates {
  A keep, rate, beta_1, rest_1, beta_2, rest_2, bias_2, eps;  // rest = 1 - beta

  template <class B>
  FM_HD AdamwRates<B> as() const {
    return {B(keep), B(rate), B(beta_1), B(rest_1), B(beta_2), B(rest_2), B(bias_2), B(eps)};
  }
};

// Tensors of n contiguous elements.
//   adamw_step     in: theta, grad, mean, square;  out: theta', mean', square'
//   adamw_adjoint  in: grad, mean, square (before the step), and the derivatives with respect to
//                  theta', mean', square';  out: those with respect to theta, grad, mean, square
struct AdamwItem {
  const void* in[6];
  void* out[4];
  int64_t n;
};

struct AdamwArgs {
  DType dtype;
  AdamwRates<double> rates;
  const AdamwItem* items;
  int64_t count;
};

// V: a scalar, or a vector of A; root(v) is its square root.
template <class A, class V, class Root>
FM_HD void adamw_core(const AdamwRates<A>& r, const Root& root, V& theta, V grad, V& mean,
                      V& square) {
  mean = r.beta_1 * mean + r.rest_1 * grad;
  square = r.beta_2 * square + r.rest_2 * grad * grad;
  const V width = (square > 0 ? root(square / r.bias_2) : V{}) + r.eps;
  theta = r.keep * theta - r.rate * mean / width;
}

// The derivatives after the step become those before it.
template <class A, class V, class Root>
FM_HD void adamw_adjoint_core(const AdamwRates<A>& r, const Root& root, V& grad, V mean, V square,
                              V& d_theta, V& d_mean, V& d_square) {
  mean = r.beta_1 * mean + r.rest_1 * grad;
  square = r.beta_2 * square + r.rest_2 * grad * grad;
  const V deviation = square > 0 ? root(square / r.bias_2) : V{}, width = deviation + r.eps;
  const V scaled = r.rate * d_theta / width;
  const V slope = scaled * mean / width / (2 * r.bias_2 * deviation);
  d_mean -= scaled;
  d_square += square > 0 ? slope : V{};
  grad = r.rest_1 * d_mean + 2 * r.rest_2 * grad * d_square;
  d_theta *= r.keep;
  d_mean *= r.beta_1;
  d_square *= r.beta_2;
}

namespace cuda {
int adamw_step(const AdamwArgs& args, void* stream);
int adamw_adjoint(const AdamwArgs& args, void* stream);
}  // namespace cuda

}  // namespace fastmeta
