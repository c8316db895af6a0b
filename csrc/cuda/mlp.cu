#include "cuda/mlp.cuh"
#include "cuda/stream.h"

namespace fastmeta::cuda {

int64_t mlp_shared_capacity(DType dtype) {
  constexpr int kStatic = 1024;  // upper bound of the kernel's static shared memory
  int device = 0, bytes = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return bytes > kStatic ? (bytes - kStatic) / (dtype == DType::f64 ? 8 : 4) : 0;
}

int mlp_step(const MlpArgs& args, const MlpPlan& plan, void* scratch, void* stream) {
  return on_stream(stream,
                   [&](const auto& launch) { launch_mlp_step(args, plan, scratch, launch); });
}

}  // namespace fastmeta::cuda
