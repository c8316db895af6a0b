// Uninitialised memory, and indices out of bounds.
#pragma once

#include <stdexcept>

#include "emulation/faults/common.h"

namespace fastmeta::emulation::faults {

// The last element of the tile is not written.
__global__ void unset_shared(const float* in, int n, float* out) {
  __shared__ float tile[kSide];
  const int k = global_index();
  if (threadIdx.x + 1 < kSide) tile[threadIdx.x] = k < n ? in[k] : 0;
  __syncthreads();
  if (k < n) out[k] = tile[threadIdx.x];
}

__global__ void unset_dynamic(const float* in, int n, float* out) {
  float* tile = cuda::dynamic_shared<float>();
  const int k = global_index();
  if (threadIdx.x + 1 < kSide) tile[threadIdx.x] = k < n ? in[k] : 0;
  __syncthreads();
  if (k < n) out[k] = tile[threadIdx.x];
}

__global__ void stops_before_the_end(const float* in, int n, float* out) {
  const int k = global_index();
  if (k + 1 < n) out[k] = in[k];
}

__global__ void reads_past_the_end(const float* in, int n, float* out) {
  const int k = global_index();
  if (k < n) out[k] = in[k + 1];
}

__global__ void overflowing_index(const float* in, int n, float* out) {
  const int k = global_index(), far = 0x7fffffff;
  if (k < n && far + k < n) out[k] = in[k];
}

__global__ void writes_past_the_end(const float* in, int n, float* out) {
  const int k = global_index();
  if (k < n) out[k + 1] = in[k];
}

__global__ void tile_too_short(const float* in, int n, float* out) {
  __shared__ float tile[kSide];
  const int k = global_index();
  tile[threadIdx.x + 1] = k < n ? in[k] : 0;
  __syncthreads();
  if (k < n) out[k] = tile[threadIdx.x];
}

__global__ void dynamic_tile_too_short(const float* in, int n, float* out) {
  float* tile = cuda::dynamic_shared<float>();  // of kSide floats
  const int k = global_index();
  tile[threadIdx.x + 1] = k < n ? in[k] : 0;
  __syncthreads();
  if (k < n) out[k] = tile[threadIdx.x + 1];
}

__global__ void misaligned_words(const float* in, int n, float* out) {
  const int k = global_index();
  if (2 * k + 2 < n)
    *reinterpret_cast<double*>(out + 2 * k + 1) = *reinterpret_cast<const double*>(in + 2 * k);
}

__global__ void throws(const float* in, int n, float* out) {
  const int k = global_index();
  __syncthreads();
  if (k == 7) throw std::out_of_range("thread 7");
  __syncthreads();
  if (k < n) out[k] = in[k];
}

}  // namespace fastmeta::emulation::faults
