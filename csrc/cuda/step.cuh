// Elementwise kernels: inner step over many tensors, and the central-difference HVP's two passes.
#pragma once

#include "cuda/common.cuh"
#include "cuda/launch.h"
#include "fastmeta/step.h"

namespace fastmeta::cuda {

constexpr int kStepElements = 4;  // a thread
constexpr int kStepsPerLaunch = 400;

struct StepTable {
  BlockMap<kStepsPerLaunch> map;
  StepItem items[kStepsPerLaunch];
};

template <class T>
__global__ void inner_step_kernel(const __grid_constant__ StepTable table) {
  using A = Acc<T>;
  const int k = table.map.find(blockIdx.x);
  const StepItem item = table.items[k];
  const T* theta = static_cast<const T*>(item.theta);
  const T* grad = static_cast<const T*>(item.grad);
  const A* alpha = static_cast<const A*>(item.alpha);
  T* out = static_cast<T*>(item.out);
  const int64_t first =
      static_cast<int64_t>(blockIdx.x - table.map.first[k]) * kThreads * kStepElements;
  for (int e = 0; e < kStepElements; ++e) {
    const int64_t p = first + e * kThreads + threadIdx.x;
    if (p >= item.n) break;
    out[p] = item.frozen ? theta[p]
                         : narrow<T>(step_core<A>(widen(theta[p]), alpha[item.alpha_full ? p : 0],
                                                  widen(grad[p])));
  }
}

template <class T>
__global__ void hvp_perturb_kernel(PerturbArgs args) {
  using A = Acc<T>;
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (k >= args.rows * args.cols) return;
  const A theta = widen(static_cast<const T*>(args.theta)[k]);
  const A move =
      static_cast<const A*>(args.eps)[k / args.cols] * widen(static_cast<const T*>(args.v)[k]);
  static_cast<T*>(args.plus)[k] = narrow<T>(theta + move);
  static_cast<T*>(args.minus)[k] = narrow<T>(theta - move);
}

template <class T>
__global__ void hvp_difference_kernel(DifferenceArgs args) {
  using A = Acc<T>;
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (k >= args.rows * args.cols) return;
  static_cast<T*>(args.out)[k] = narrow<T>(difference_core<A>(
      widen(static_cast<const T*>(args.v)[k]),
      static_cast<const A*>(args.alpha)[args.alpha_full ? k % args.cols : 0],
      widen(static_cast<const T*>(args.g_plus)[k]), widen(static_cast<const T*>(args.g_minus)[k]),
      static_cast<const A*>(args.eps)[k / args.cols]));
}

template <class Launch>
void launch_inner_step(const StepArgs& args, const Launch& launch) {
  dispatch(args.dtype, [&](auto zero) {
    for_each_item_group<StepTable, kStepsPerLaunch>(
        args.count,
        [&](int64_t k) { return blocks_for(args.items[k].n, kThreads * kStepElements); },
        [&](StepTable& table, int slot, int64_t k) { table.items[slot] = args.items[k]; },
        [&](const StepTable& table, int blocks) {
          launch(inner_step_kernel<decltype(zero)>, blocks, kThreads, table);
        });
  });
}

template <class Launch>
void launch_hvp_perturb(const PerturbArgs& args, const Launch& launch) {
  const int blocks = blocks_for(args.rows * args.cols, kThreads);
  if (blocks == 0) return;
  dispatch(args.dtype,
           [&](auto zero) { launch(hvp_perturb_kernel<decltype(zero)>, blocks, kThreads, args); });
}

template <class Launch>
void launch_hvp_difference(const DifferenceArgs& args, const Launch& launch) {
  const int blocks = blocks_for(args.rows * args.cols, kThreads);
  if (blocks == 0) return;
  dispatch(args.dtype, [&](auto zero) {
    launch(hvp_difference_kernel<decltype(zero)>, blocks, kThreads, args);
  });
}

}  // namespace fastmeta::cuda
