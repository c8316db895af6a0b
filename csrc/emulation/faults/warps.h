// Masks that differ from the participating lanes.
#pragma once

#include "emulation/faults/common.h"

namespace fastmeta::emulation::faults {

__global__ void mask_without_caller(const float* in, int n, float* out) {
  const int k = global_index();
  const float x = __shfl_down_sync(0xffffu, in[k], 1);
  if (k < n) out[k] = x;
}

__global__ void mask_of_ended_lanes(const float* in, int n, float* out) {
  const int k = global_index();
  if (k >= n || threadIdx.x % 32 >= 16) return;
  out[k] = __shfl_down_sync(kAllLanes, in[k], 1);
}

__global__ void mask_of_other_branch(const float* in, int n, float* out) {
  const int k = global_index();
  float x = in[k];
  if (threadIdx.x % 32 < 16)
    x = __shfl_xor_sync(kAllLanes, x, 1);
  else
    x = __shfl_xor_sync(kAllLanes, x, 2);
  if (k < n) out[k] = x;
}

__global__ void source_outside_mask(const float* in, int n, float* out) {
  const int k = global_index();
  float x = in[k];
  if (threadIdx.x % 32 < 16) x = __shfl_xor_sync(0xffffu, x, 16);
  if (k < n) out[k] = x;
}

__global__ void shuffle_against_barrier(const float* in, int n, float* out) {
  const int k = global_index();
  float x = in[k];
  if (threadIdx.x == 3)
    __syncthreads();
  else
    x = __shfl_down_sync(kAllLanes, x, 1);
  if (k < n) out[k] = x;
}

}  // namespace fastmeta::emulation::faults
