// Copies from global to shared memory that do not pass through registers, for sm_80 and later;
// emulation/cuda.h has its own.
#pragma once

#include "cuda/common.cuh"

namespace fastmeta::cuda {

#if defined(__CUDACC__)
// Starts to copy 16 aligned bytes, or zeros if not `given`.
__device__ inline void copy_async(void* to, const void* from, bool given) {
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from),
               "r"(given ? 16 : 0)
               : "memory");
}

// Waits for the copies that this thread has started; other threads see them after a barrier.
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}
#endif

}  // namespace fastmeta::cuda
