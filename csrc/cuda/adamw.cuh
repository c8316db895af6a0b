// AdamW's update and its adjoint over many tensors. Each thread handles 16 bytes of every tensor.
#pragma once

#include "cuda/lanes.cuh"
#include "cuda/launch.h"
#include "fastmeta/adamw.h"

namespace fastmeta::cuda {

constexpr int kAdamwItemsPerLaunch = 320;

struct AdamwTable {
  BlockMap<kAdamwItemsPerLaunch> map;
  AdamwItem items[kAdamwItemsPerLaunch];
};

template <class A>
struct AdamwRoot {
  __device__ A operator()(A x) const { return std::sqrt(x); }
};

template <class T>
__global__ void adamw_step_kernel(const __grid_constant__ AdamwTable table,
                                  AdamwRates<Acc<T>> rates) {
  using A = Acc<T>;
  const int k = table.map.find(blockIdx.x);
  const AdamwItem& item = table.items[k];
  const ElementLanes<T> lanes(blockIdx.x - table.map.first[k], item.n);
  if (lanes.left <= 0) return;
  A theta[kLanes<T>], grad[kLanes<T>], mean[kLanes<T>], square[kLanes<T>];
  lanes.read(item.in[0], theta);
  lanes.read(item.in[1], grad);
  lanes.read(item.in[2], mean);
  lanes.read(item.in[3], square);
  for (int i = 0; i < kLanes<T>; ++i)
    adamw_core(rates, AdamwRoot<A>{}, theta[i], grad[i], mean[i], square[i]);
  lanes.write(item.out[0], theta);
  lanes.write(item.out[1], mean);
  lanes.write(item.out[2], square);
}

template <class T>
__global__ void adamw_adjoint_kernel(const __grid_constant__ AdamwTable table,
                                     AdamwRates<Acc<T>> rates) {
  using A = Acc<T>;
  const int k = table.map.find(blockIdx.x);
  const AdamwItem& item = table.items[k];
  const ElementLanes<T> lanes(blockIdx.x - table.map.first[k], item.n);
  if (lanes.left <= 0) return;
  A grad[kLanes<T>], mean[kLanes<T>], square[kLanes<T>];
  A d_theta[kLanes<T>], d_mean[kLanes<T>], d_square[kLanes<T>];
  lanes.read(item.in[0], grad);
  lanes.read(item.in[1], mean);
  lanes.read(item.in[2], square);
  lanes.read(item.in[3], d_theta);
  lanes.read(item.in[4], d_mean);
  lanes.read(item.in[5], d_square);
  for (int i = 0; i < kLanes<T>; ++i)
    adamw_adjoint_core(rates, AdamwRoot<A>{}, grad[i], mean[i], square[i], d_theta[i], d_mean[i],
                       d_square[i]);
  lanes.write(item.out[0], d_theta);
  lanes.write(item.out[1], grad);
  lanes.write(item.out[2], d_mean);
  lanes.write(item.out[3], d_square);
}

// Calls start(table, blocks, rates, T{}) for groups of items that fit the kernel parameters.
template <class Start>
void for_each_adamw_group(const AdamwArgs& args, const Start& start) {
  dispatch(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto rates = args.rates.as<Acc<T>>();
    for_each_item_group<AdamwTable, kAdamwItemsPerLaunch>(
        args.count, [&](int64_t k) { return blocks_for(args.items[k].n, kThreads * kLanes<T>); },
        [&](AdamwTable& table, int slot, int64_t k) { table.items[slot] = args.items[k]; },
        [&](const AdamwTable& table, int blocks) { start(table, blocks, rates, zero); });
  });
}

template <class Launch>
void launch_adamw_step(const AdamwArgs& args, const Launch& launch) {
  for_each_adamw_group(args, [&](const AdamwTable& table, int blocks, auto rates, auto zero) {
    launch(adamw_step_kernel<decltype(zero)>, blocks, kThreads, table, rates);
  });
}

template <class Launch>
void launch_adamw_adjoint(const AdamwArgs& args, const Launch& launch) {
  for_each_adamw_group(args, [&](const AdamwTable& table, int blocks, auto rates, auto zero) {
    launch(adamw_adjoint_kernel<decltype(zero)>, blocks, kThreads, table, rates);
  });
}

}  // namespace fastmeta::cuda
