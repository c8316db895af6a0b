// Kernels on a CUDA stream: the launcher of the launch_* functions in a CUDA build.
#pragma once

#include <cuda_runtime_api.h>

namespace fastmeta::cuda {

struct Stream {
  cudaStream_t queue;
  size_t shared = 0;

  // The same stream, launching with `bytes` of dynamic shared memory.
  Stream with_shared(size_t bytes) const { return {queue, bytes}; }

  // Whether the kernel's code for the current GPU was compiled for this compute capability (80 is
  // 8.0) or a later one.
  template <class... P>
  bool compiled_for(void (*kernel)(P...), int capability) const {
    cudaFuncAttributes found{};
    const auto* code = reinterpret_cast<const void*>(kernel);
    return cudaFuncGetAttributes(&found, code) == cudaSuccess && found.ptxVersion >= capability;
  }

  void zero(void* memory, size_t bytes) const { cudaMemsetAsync(memory, 0, bytes, queue); }

  template <class... P, class... A>
  void operator()(void (*kernel)(P...), dim3 grid, dim3 threads, const A&... args) const {
    if (shared > 0)  // beyond 48 KB the kernel must opt in
      cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                           cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    kernel<<<grid, threads, shared, queue>>>(args...);
  }
};

// Calls body(launcher); returns the cudaError_t of its launches. `stream` is a cudaStream_t.
template <class Body>
int on_stream(void* stream, const Body& body) {
  body(Stream{static_cast<cudaStream_t>(stream)});
  return cudaGetLastError();
}

}  // namespace fastmeta::cuda
