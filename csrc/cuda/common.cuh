// Shared by the kernels: thread counts, reductions in a fixed order, and the map from blocks to
// items of different sizes.
#pragma once

#include <cstdint>

#include "fastmeta/platform.h"

namespace fastmeta::cuda {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr unsigned kFullWarp = 0xffffffffu;

#if defined(__CUDACC__)
#define FM_PRAGMA(text) _Pragma(#text)
#define FM_UNROLL(n) FM_PRAGMA(unroll n)  // the next loop, to have several loads in flight

// The block's dynamic shared memory; emulation/cuda.h has its own.
template <class T>
__device__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char memory[];
  return reinterpret_cast<T*>(memory);
}
#else
#define FM_UNROLL(n)
#endif

// Sum over the lanes of a full warp; valid in lane 0.
__device__ inline double warp_sum(double x) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_down_sync(kFullWarp, x, offset);
  return x;
}

// Sum over a block of kThreads; valid in thread 0. Every thread of the block must call it.
__device__ inline double block_sum(double x) {
  __shared__ double warps[kThreads / kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  x = warp_sum(x);
  __syncthreads();  // the reads of the previous call are done
  if (lane == 0) warps[warp] = x;
  __syncthreads();
  double total = 0;
  if (threadIdx.x == 0)
    for (int w = 0; w < kThreads / kWarp; ++w) total += warps[w];
  return total;
}

// Items of different sizes in one launch: item k has the blocks first[k] .. first[k+1]-1. Tables
// are passed as kernel parameters (32,764 bytes from CUDA 12.1 on), so no copy is queued.
template <int kCapacity>
struct BlockMap {
  int32_t first[kCapacity + 1];
  int32_t count;

  __device__ int find(int block) const {
    int low = 0, high = count;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      if (first[middle] <= block)
        low = middle;
      else
        high = middle;
    }
    return low;
  }
};

// The segments' chunks as a block map: chunk c of segment s is block first[s] + c.
constexpr int kSegmentsPerLaunch = 256;

struct SegmentMap {
  BlockMap<kSegmentsPerLaunch> blocks;
  int64_t bounds[kSegmentsPerLaunch + 1];
  int64_t width;

  struct Range {
    int segment;  // within this launch
    int64_t begin;
    int64_t end;
  };
  __device__ Range range(int block) const {
    const int s = blocks.find(block);
    const int64_t begin = bounds[s] + (block - blocks.first[s]) * width;
    const int64_t end = begin + width < bounds[s + 1] ? begin + width : bounds[s + 1];
    return {s, begin, end};
  }
};

}  // namespace fastmeta::cuda
