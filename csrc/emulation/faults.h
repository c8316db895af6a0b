// Kernels with one planted fault each, and sound ones beside them: what the emulation must find,
// and what it must let pass. Each reads n values and writes n, kSide threads a block.
#pragma once

#include <stdexcept>

#include "emulation/cuda.h"

namespace fastmeta::emulation::faults {

constexpr int kSide = 64;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ inline int global_index() {
  return static_cast<int>(blockIdx.x * kSide + threadIdx.x);
}

// --- sound ---

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

// out = the sum of the half warp's values: a partial mask that names just the lanes that come.
__global__ void half_warp_sums(const float* in, int n, float* out) {
  const int k = global_index(), lane = threadIdx.x % 32;
  float x = k < n ? in[k] : 0;
  if (lane < 16)
    for (int flip = 8; flip > 0; flip /= 2) x += __shfl_xor_sync(0xffffu, x, flip, 16);
  else
    for (int flip = 8; flip > 0; flip /= 2) x += __shfl_xor_sync(0xffff0000u, x, flip, 16);
  if (k < n) out[k] = x;
}

// out = in of the warp's first lane, where all agree that its ballot is right.
__global__ void votes(const float* in, int n, float* out) {
  const int k = global_index();
  const float x = k < n ? __ldg(in + k) : 0;
  const unsigned positive = __ballot_sync(kAllLanes, x > 0);
  const bool mine = (positive >> (threadIdx.x % 32) & 1) == (x > 0);
  const bool sound = __all_sync(kAllLanes, mine) && !__any_sync(kAllLanes, !mine);
  const float first = __shfl_sync(kAllLanes, x, 0);
  if (k < n) out[k] = sound ? first : -1;
}

// --- barriers ---

__global__ void missing_barrier(const float* in, int n, float* out) {
  __shared__ float tile[kSide];
  const int k = global_index();
  tile[threadIdx.x] = k < n ? in[k] : 0;
  if (k < n) out[k] = tile[kSide - 1 - threadIdx.x];
}

// Tiles are staged twice; the second overwrites what slower threads still read.
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

// Every thread reports to the same place.
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

// --- warps ---

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

// --- memory ---

// A tile of which the last is forgotten.
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

// --- blocks that tell each other ---

// Global memory of these kernels, as a launcher leaves it. The pattern also keeps it apart from
// shared memory, which is what is zero at first.
constexpr int kMostBlocks = 16;
struct Common {
  float values[kMostBlocks * kSide];
  unsigned ticket, forgotten;
  void reset() {
    memset(this, 0xff, sizeof(*this));
    ticket = 0;
  }
};
inline Common common = {{1}, 1, 1};

// out = in, reversed, by the block that is last.
__device__ inline void reverse_all(int n, float* out) {
  for (int k = threadIdx.x; k < n; k += kSide) out[k] = common.values[n - 1 - k];
}

__device__ inline void take_ticket(unsigned* ticket, int before_last, bool* last) {
  __threadfence();
  *last = atomicAdd(ticket, 1) + before_last == gridDim.x;
  __threadfence();
}

// Sound.
__global__ void reverse_by_the_last_block(const float* in, int n, float* out) {
  __shared__ bool last;
  const int k = global_index();
  if (k < n) common.values[k] = in[k];
  __syncthreads();
  if (threadIdx.x == 0) take_ticket(&common.ticket, 1, &last);
  __syncthreads();
  if (last) reverse_all(n, out);
}

// Nobody has set it to zero: no block is the last.
__global__ void ticket_not_reset(const float* in, int n, float* out) {
  __shared__ bool last;
  const int k = global_index();
  if (k < n) common.values[k] = in[k];
  __syncthreads();
  if (threadIdx.x == 0) take_ticket(&common.forgotten, 1, &last);
  __syncthreads();
  if (last) reverse_all(n, out);
}

// The last but one begins.
__global__ void one_block_too_early(const float* in, int n, float* out) {
  __shared__ bool last;
  const int k = global_index();
  if (k < n) common.values[k] = in[k];
  __syncthreads();
  if (threadIdx.x == 0) take_ticket(&common.ticket, 2, &last);
  __syncthreads();
  if (last) reverse_all(n, out);
}

// Before the other threads of the block have written.
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
  __threadfence();  // of its own value alone: the others' come later
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

struct Entry {
  const char* name;
  void (*kernel)(const float*, int, float*);
};

#define FM_ENTRY(kernel) {#kernel, kernel}
constexpr Entry kAll[] = {
    FM_ENTRY(reverse),
    FM_ENTRY(reverse_dynamically),
    FM_ENTRY(half_warp_sums),
    FM_ENTRY(votes),
    FM_ENTRY(missing_barrier),
    FM_ENTRY(missing_second_barrier),
    FM_ENTRY(two_writers),
    FM_ENTRY(divergent_barrier),
    FM_ENTRY(two_barriers),
    FM_ENTRY(mask_without_caller),
    FM_ENTRY(mask_of_ended_lanes),
    FM_ENTRY(mask_of_other_branch),
    FM_ENTRY(source_outside_mask),
    FM_ENTRY(shuffle_against_barrier),
    FM_ENTRY(unset_shared),
    FM_ENTRY(unset_dynamic),
    FM_ENTRY(stops_before_the_end),
    FM_ENTRY(reads_past_the_end),
    FM_ENTRY(overflowing_index),
    FM_ENTRY(writes_past_the_end),
    FM_ENTRY(tile_too_short),
    FM_ENTRY(dynamic_tile_too_short),
    FM_ENTRY(misaligned_words),
    FM_ENTRY(throws),
    FM_ENTRY(reverse_by_the_last_block),
    FM_ENTRY(ticket_not_reset),
    FM_ENTRY(one_block_too_early),
    FM_ENTRY(ticket_before_the_barrier),
    FM_ENTRY(no_fence_before_the_ticket),
    FM_ENTRY(no_fence_behind_the_ticket),
};
#undef FM_ENTRY

}  // namespace fastmeta::emulation::faults
