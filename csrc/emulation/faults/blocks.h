// Communication between blocks by tickets and fences, correct and with a fault.
#pragma once

#include "emulation/faults/common.h"

namespace fastmeta::emulation::faults {

// Global memory of these kernels, as initialised by a launcher. Its initial values keep it out of
// the zero-initialised memory, which the emulation takes for shared memory.
constexpr int kMaxBlocks = 16;
struct Common {
  float values[kMaxBlocks * kSide];
  unsigned ticket, forgotten;
  void reset() {
    memset(this, 0xff, sizeof(*this));
    ticket = 0;
  }
};
inline Common common = {{1}, 1, 1};

// out = in, reversed, by the last block.
__device__ inline void reverse_all(int n, float* out) {
  for (int k = threadIdx.x; k < n; k += kSide) out[k] = common.values[n - 1 - k];
}

__device__ inline void take_ticket(unsigned* ticket, int before_last, bool* last) {
  __threadfence();
  *last = atomicAdd(ticket, 1) + before_last == gridDim.x;
  __threadfence();
}

// Correct.
__global__ void reverse_by_the_last_block(const float* in, int n, float* out) {
  __shared__ bool last;
  const int k = global_index();
  if (k < n) common.values[k] = in[k];
  __syncthreads();
  if (threadIdx.x == 0) take_ticket(&common.ticket, 1, &last);
  __syncthreads();
  if (last) reverse_all(n, out);
}

// The ticket is not set to zero: no block is the last.
__global__ void ticket_not_reset(const float* in, int n, float* out) {
  __shared__ bool last;
  const int k = global_index();
  if (k < n) common.values[k] = in[k];
  __syncthreads();
  if (threadIdx.x == 0) take_ticket(&common.forgotten, 1, &last);
  __syncthreads();
  if (last) reverse_all(n, out);
}

// The last but one block takes itself for the last.
__global__ void one_block_too_early(const float* in, int n, float* out) {
  __shared__ bool last;
  const int k = global_index();
  if (k < n) common.values[k] = in[k];
  __syncthreads();
  if (threadIdx.x == 0) take_ticket(&common.ticket, 2, &last);
  __syncthreads();
  if (last) reverse_all(n, out);
}

// The ticket is taken before the other threads of the block have written.
__global__ void ticket_before_the_barrier(const float* in, int n, float* out) {
  __shared__ bool last;
  const int k = global_index();
  if (threadIdx.x == 0) take_ticket(&common.ticket, 1, &last);
  __syncthreads();
  if (k < n) common.values[k] = in[k];
  if (last) reverse_all(n, out);
}

__global__ void no_fence_before_the_ticket(const float* in, int n, float* out) {
  __shared__ bool last;
  const int k = global_index();
  if (k < n) common.values[k] = in[k];
  __threadfence();  // covers its own value only, not those of other threads
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(&common.ticket, 1) + 1 == gridDim.x;
  __threadfence();
  __syncthreads();
  if (last) reverse_all(n, out);
}

__global__ void no_fence_behind_the_ticket(const float* in, int n, float* out) {
  __shared__ bool last;
  const int k = global_index();
  if (k < n) common.values[k] = in[k];
  __syncthreads();
  __threadfence();
  if (threadIdx.x == 0) last = atomicAdd(&common.ticket, 1) + 1 == gridDim.x;
  __syncthreads();
  if (last) reverse_all(n, out);
}

}  // namespace fastmeta::emulation::faults
