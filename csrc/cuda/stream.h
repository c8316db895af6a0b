// Kernels on a CUDA stream: the launcher that the launch_* functions are given in a CUDA build.
#pragma once

#include <cuda_runtime_api.h>

namespace fastmeta::cuda {

struct Stream {
  cudaStream_t queue;

  template <class... P, class... A>
  void operator()(void (*kernel)(P...), dim3 grid, dim3 threads, const A&... args) const {
    kernel<<<grid, threads, 0, queue>>>(args...);
  }
};

// Calls body(launcher); returns the cudaError_t of its launches. `stream` is a cudaStream_t.
template <class Body>
int on_stream(void* stream, const Body& body) {
  body(Stream{static_cast<cudaStream_t>(stream)});
  return cudaGetLastError();
}

}  // namespace fastmeta::cuda
