// Kernels without a fault, which the emulation must accept.
#pragma once

#include "emulation/faults/common.h"

namespace fastmeta::emulation::faults {

// out = in, reversed within each block.
__global__ void reverse(const float* in, int n, float* out) {
  __shared__ float tile[kSide];
  const int k = global_index();
  tile[threadIdx.x] = k < n ? in[k] : 0;
  __syncthreads();
  if (k < n) out[k] = tile[kSide - 1 - threadIdx.x];
}

// The same, through dynamic shared memory.
__global__ void reverse_dynamically(const float* in, int n, float* out) {
  float* tile = cuda::dynamic_shared<float>();
  const int k = global_index();
  tile[threadIdx.x] = k < n ? in[k] : 0;
  __syncthreads();
  if (k < n) out[k] = tile[kSide - 1 - threadIdx.x];
}

// out = the sum over a half warp, with partial masks of exactly the participating lanes.
__global__ void half_warp_sums(const float* in, int n, float* out) {
  const int k = global_index(), lane = threadIdx.x % 32;
  float x = k < n ? in[k] : 0;
  if (lane < 16)
    for (int flip = 8; flip > 0; flip /= 2) x += __shfl_xor_sync(0xffffu, x, flip, 16);
  else
    for (int flip = 8; flip > 0; flip /= 2) x += __shfl_xor_sync(0xffff0000u, x, flip, 16);
  if (k < n) out[k] = x;
}

// out = in of the first lane of the warp, if all lanes agree that the ballot is right.
__global__ void votes(const float* in, int n, float* out) {
  const int k = global_index();
  const float x = k < n ? __ldg(in + k) : 0;
  const unsigned positive = __ballot_sync(kAllLanes, x > 0);
  const bool mine = (positive >> (threadIdx.x % 32) & 1) == (x > 0);
  const bool correct = __all_sync(kAllLanes, mine) && !__any_sync(kAllLanes, !mine);
  const float first = __shfl_sync(kAllLanes, x, 0);
  if (k < n) out[k] = correct ? first : -1;
}

}  // namespace fastmeta::emulation::faults
