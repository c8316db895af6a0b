#include "cuda/step.cuh"

#include "cuda/launch.h"

namespace fastmeta::cuda {

int inner_step(const StepArgs& args, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  dispatch(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    for_each_item_group<StepTable, kStepsPerLaunch>(
        args.count,
        [&](int64_t k) { return blocks_for(args.items[k].n, kThreads * kStepElements); },
        [&](StepTable& table, int slot, int64_t k) { table.items[slot] = args.items[k]; },
        [&](const StepTable& table, int blocks) {
          inner_step_kernel<T><<<blocks, kThreads, 0, queue>>>(table);
        });
  });
  return cudaGetLastError();
}

int hvp_perturb(const PerturbArgs& args, void* stream) {
  const int blocks = blocks_for(args.rows * args.cols, kThreads);
  if (blocks == 0) return cudaSuccess;
  dispatch(args.dtype, [&](auto zero) {
    hvp_perturb_kernel<decltype(zero)>
        <<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(args);
  });
  return cudaGetLastError();
}

int hvp_difference(const DifferenceArgs& args, void* stream) {
  const int blocks = blocks_for(args.rows * args.cols, kThreads);
  if (blocks == 0) return cudaSuccess;
  dispatch(args.dtype, [&](auto zero) {
    hvp_difference_kernel<decltype(zero)>
        <<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(args);
  });
  return cudaGetLastError();
}

}  // namespace fastmeta::cuda
