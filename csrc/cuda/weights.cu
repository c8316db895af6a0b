#include "cuda/weights.cuh"

#include "cuda/launch.h"

namespace fastmeta::cuda {

int gsl_coefficients(const GslArgs& args, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  const int blocks = blocks_for(args.rows * args.segments, kThreads);
  if (blocks == 0) return cudaSuccess;
  if (args.dtype == DType::f64)
    gsl_coefficients_kernel<double><<<blocks, kThreads, 0, queue>>>(args);
  else
    gsl_coefficients_kernel<float><<<blocks, kThreads, 0, queue>>>(args);
  return cudaGetLastError();
}

int task_weights(const TaskWeightArgs& args, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  if (args.rows == 0) return cudaSuccess;
  if (args.dtype == DType::f64)
    task_weights_kernel<double><<<1, 1, 0, queue>>>(args);
  else
    task_weights_kernel<float><<<1, 1, 0, queue>>>(args);
  return cudaGetLastError();
}

}  // namespace fastmeta::cuda
