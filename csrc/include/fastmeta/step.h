// Elementwise steps over many tensors of T tasks in one launch.
//
//   inner_step      out = theta - alpha * g                  (frozen: out = theta)
//   hvp_perturb     plus, minus = theta +- eps_t * v
//   hvp_difference  out = v - alpha * (g_plus - g_minus) / (2 eps_t)
//
// inner_step with theta = v and g = H v is the exact HVP recursion step.
#pragma once

#include "fastmeta/parallel.h"
#include "fastmeta/platform.h"

namespace fastmeta {

// A tensor (or a row of one): n contiguous elements.
struct StepItem {
  const void* theta;
  const void* grad;
  const void* alpha;  // of Acc<dtype>: one value, or n of them
  void* out;
  int64_t n;
  int32_t alpha_full;  // alpha has n values
  int32_t frozen;
};

struct StepArgs {
  DType dtype;
  const StepItem* items;
  int64_t count;
};

struct PerturbArgs {
  DType dtype;
  int64_t rows;
  int64_t cols;
  const void* theta;  // (rows, cols), all buffers contiguous
  const void* v;
  const void* eps;  // (rows) of Acc<dtype>
  void* plus;
  void* minus;
};

struct DifferenceArgs {
  DType dtype;
  int64_t rows;
  int64_t cols;
  const void* v;
  const void* g_plus;
  const void* g_minus;
  const void* eps;     // (rows) of Acc<dtype>
  const void* alpha;   // (1) or (cols) of Acc<dtype>
  int32_t alpha_full;  // alpha has cols values
  void* out;
};

template <class A>
FM_HD A step_core(A theta, A alpha, A grad) {
  return theta - alpha * grad;
}

// eps = 0 stands for v = 0, whose Hessian-vector product is zero.
template <class A>
FM_HD A difference_core(A v, A alpha, A g_plus, A g_minus, A eps) {
  return eps == A(0) ? v : v - alpha * ((g_plus - g_minus) / (A(2) * eps));
}

namespace cuda {
int inner_step(const StepArgs& args, void* stream);
int hvp_perturb(const PerturbArgs& args, void* stream);
int hvp_difference(const DifferenceArgs& args, void* stream);
}  // namespace cuda

}  // namespace fastmeta
