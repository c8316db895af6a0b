// Missing barriers, and barriers that not all threads of a block reach.
#pragma once

#include "emulation/faults/common.h"

namespace fastmeta::emulation::faults {

__global__ void missing_barrier(const float* in, int n, float* out) {
  __shared__ float tile[kSide];
  const int k = global_index();
  tile[threadIdx.x] = k < n ? in[k] : 0;
  if (k < n) out[k] = tile[kSide - 1 - threadIdx.x];
}

// The second tile overwrites what slower threads still read of the first.
__global__ void missing_second_barrier(const float* in, int n, float* out) {
  __shared__ float tile[kSide];
  const int k = global_index();
  float sum = 0;
  for (int round = 0; round < 2; ++round) {
    tile[threadIdx.x] = k < n ? in[k] * (round + 1) : 0;
    __syncthreads();
    sum += tile[kSide - 1 - threadIdx.x];
  }
  if (k < n) out[k] = sum;
}

// Every thread writes to the same address.
__global__ void two_writers(const float* in, int n, float* out) {
  __shared__ float found;
  const int k = global_index();
  if (k < n && in[k] != 0) found = 1;
  __syncthreads();
  if (k < n) out[k] = found;
}

__global__ void divergent_barrier(const float* in, int n, float* out) {
  const int k = global_index();
  if (threadIdx.x < kSide / 2) __syncthreads();
  if (k < n) out[k] = in[k];
}

__global__ void two_barriers(const float* in, int n, float* out) {
  const int k = global_index();
  if (threadIdx.x < kSide / 2)
    __syncthreads();
  else
    __syncthreads();
  if (k < n) out[k] = in[k];
}

}  // namespace fastmeta::emulation::faults
