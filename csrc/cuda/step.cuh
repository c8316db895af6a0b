// Elementwise kernels: inner step over many tensors, and the central-difference HVP's two passes.
// Each thread handles 16 bytes of every buffer.
#pragma once

#include "cuda/lanes.cuh"
#include "cuda/launch.h"
#include "fastmeta/step.h"

namespace fastmeta::cuda {

constexpr int kStepsPerLaunch = 400;

struct StepTable {
  BlockMap<kStepsPerLaunch> map;
  StepItem items[kStepsPerLaunch];
};

// x[k] = rates[p + k] if `each` element has a rate, else the only one.
template <bool kWhole, class A, int kCount>
__device__ inline void load_rates(const void* rates, bool each, int64_t p, int64_t left,
                                  A (&x)[kCount]) {
  const A* own = static_cast<const A*>(rates);
  if (each) return load_lanes<kWhole>(own + p, left, x);
  for (int k = 0; k < kCount; ++k) x[k] = *own;
}

template <class T>
__global__ void inner_step_kernel(const __grid_constant__ StepTable table) {
  using A = Acc<T>;
  const int k = table.map.find(blockIdx.x);
  const StepItem item = table.items[k];
  const int64_t block = blockIdx.x - table.map.first[k];
  const int64_t p = (block * kThreads + threadIdx.x) * kLanes<T>, left = item.n - p;
  if (left <= 0) return;
  const T* theta = static_cast<const T*>(item.theta) + p;
  T* out = static_cast<T*>(item.out) + p;
  const bool aligned =
      aligned16(theta, item.grad, out) && (!item.alpha_full || aligned16(item.alpha));
  as_type(aligned && left >= kLanes<T>, [&](auto whole) {
    constexpr bool kWhole = decltype(whole)::value;
    if (item.frozen) return copy_lanes<kWhole>(theta, left, out);
    A x[kLanes<T>], grad[kLanes<T>], alpha[kLanes<T>];
    load_lanes<kWhole>(theta, left, x);
    load_lanes<kWhole>(static_cast<const T*>(item.grad) + p, left, grad);
    load_rates<kWhole>(item.alpha, item.alpha_full, p, left, alpha);
    for (int k = 0; k < kLanes<T>; ++k) x[k] = step_core<A>(x[k], alpha[k], grad[k]);
    store_lanes(out, left, kWhole, x);
  });
}

// The elements of a thread in a (rows, cols) matrix: from `column` of `row` on, `left` up to the
// end of the row. No block crosses rows.
template <class T>
struct RowLanes {
  static constexpr int64_t kBlock = kThreads * kLanes<T>;  // elements
  int64_t row, column, left, first;

  __device__ explicit RowLanes(int64_t cols) {
    const unsigned blocks = static_cast<unsigned>((cols + kBlock - 1) / kBlock);
    row = blockIdx.x / blocks;
    column = blockIdx.x % blocks * kBlock + threadIdx.x * kLanes<T>;
    left = cols - column;
    first = row * cols + column;
  }
  __device__ const T* in(const void* matrix) const { return static_cast<const T*>(matrix) + first; }
  __device__ T* out(void* matrix) const { return static_cast<T*>(matrix) + first; }
};

template <class T>
__global__ void hvp_perturb_kernel(PerturbArgs args) {
  using A = Acc<T>;
  const RowLanes<T> own(args.cols);
  if (own.left <= 0) return;
  const T *theta = own.in(args.theta), *v = own.in(args.v);
  T *plus = own.out(args.plus), *minus = own.out(args.minus);
  const A eps = static_cast<const A*>(args.eps)[own.row];
  as_type(own.left >= kLanes<T> && aligned16(theta, v, plus, minus), [&](auto whole) {
    constexpr bool kWhole = decltype(whole)::value;
    A x[kLanes<T>], direction[kLanes<T>], up[kLanes<T>], down[kLanes<T>];
    load_lanes<kWhole>(theta, own.left, x);
    load_lanes<kWhole>(v, own.left, direction);
    for (int k = 0; k < kLanes<T>; ++k) {
      up[k] = x[k] + eps * direction[k];
      down[k] = x[k] - eps * direction[k];
    }
    store_lanes(plus, own.left, kWhole, up);
    store_lanes(minus, own.left, kWhole, down);
  });
}

template <class T>
__global__ void hvp_difference_kernel(DifferenceArgs args) {
  using A = Acc<T>;
  const RowLanes<T> own(args.cols);
  if (own.left <= 0) return;
  const T *v = own.in(args.v), *g_plus = own.in(args.g_plus), *g_minus = own.in(args.g_minus);
  T* out = own.out(args.out);
  const A eps = static_cast<const A*>(args.eps)[own.row];
  const bool aligned =
      aligned16(v, g_plus, g_minus, out) && (!args.alpha_full || aligned16(args.alpha));
  as_type(own.left >= kLanes<T> && aligned, [&](auto whole) {
    constexpr bool kWhole = decltype(whole)::value;
    A x[kLanes<T>], up[kLanes<T>], down[kLanes<T>], alpha[kLanes<T>];
    load_lanes<kWhole>(v, own.left, x);
    load_lanes<kWhole>(g_plus, own.left, up);
    load_lanes<kWhole>(g_minus, own.left, down);
    load_rates<kWhole>(args.alpha, args.alpha_full, own.column, own.left, alpha);
    for (int k = 0; k < kLanes<T>; ++k)
      x[k] = difference_core<A>(x[k], alpha[k], up[k], down[k], eps);
    store_lanes(out, own.left, kWhole, x);
  });
}

template <class Launch>
void launch_inner_step(const StepArgs& args, const Launch& launch) {
  dispatch(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    for_each_item_group<StepTable, kStepsPerLaunch>(
        args.count, [&](int64_t k) { return blocks_for(args.items[k].n, kThreads * kLanes<T>); },
        [&](StepTable& table, int slot, int64_t k) { table.items[slot] = args.items[k]; },
        [&](const StepTable& table, int blocks) {
          launch(inner_step_kernel<T>, blocks, kThreads, table);
        });
  });
}

template <class Launch>
void launch_hvp_perturb(const PerturbArgs& args, const Launch& launch) {
  dispatch(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t blocks = args.rows * blocks_for(args.cols, RowLanes<T>::kBlock);
    if (blocks > 0) launch(hvp_perturb_kernel<T>, static_cast<unsigned>(blocks), kThreads, args);
  });
}

template <class Launch>
void launch_hvp_difference(const DifferenceArgs& args, const Launch& launch) {
  dispatch(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t blocks = args.rows * blocks_for(args.cols, RowLanes<T>::kBlock);
    if (blocks > 0) launch(hvp_difference_kernel<T>, static_cast<unsigned>(blocks), kThreads, args);
  });
}

}  // namespace fastmeta::cuda
