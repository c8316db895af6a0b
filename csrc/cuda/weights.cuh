// Kernels over the similarity scalars. They are separate launches, not a prologue of combine, since
// callers scale the coefficients in between (task weights, loss scales).
#pragma once

#include "cuda/common.cuh"
#include "cuda/launch.h"
#include "fastmeta/weights.h"

namespace fastmeta::cuda {

template <class A>
__global__ void gsl_coefficients_kernel(GslArgs args) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (k >= args.rows * args.segments) return;
  gsl_coefficients_core<A>(args, k);
}

// One thread: T is small, and task order keeps the sums reproducible.
template <class A>
__global__ void task_weights_kernel(TaskWeightArgs args) {
  task_weights_core(static_cast<const A*>(args.stats), args.rows, args.rule,
                    static_cast<A>(args.lam_c), static_cast<A>(args.lam_2),
                    static_cast<A>(args.tau), static_cast<A*>(args.out));
}

template <class Launch>
void launch_gsl_coefficients(const GslArgs& args, const Launch& launch) {
  const int blocks = blocks_for(args.rows * args.segments, kThreads);
  if (blocks == 0) return;
  if (args.dtype == DType::f64)
    launch(gsl_coefficients_kernel<double>, blocks, kThreads, args);
  else
    launch(gsl_coefficients_kernel<float>, blocks, kThreads, args);
}

template <class Launch>
void launch_task_weights(const TaskWeightArgs& args, const Launch& launch) {
  if (args.rows == 0) return;
  if (args.dtype == DType::f64)
    launch(task_weights_kernel<double>, 1, 1, args);
  else
    launch(task_weights_kernel<float>, 1, 1, args);
}

}  // namespace fastmeta::cuda
