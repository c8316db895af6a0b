// Sums over the chunks of a segment, one block each, within one launch: whichever block finishes
// last adds them up in a fixed order.
#pragma once

#include "cuda/common.cuh"

namespace fastmeta::cuda {

// Whether this block is the last of `count` to call this; it then sees the earlier writes of the
// others. The ticket must start at zero. Every thread of the block must call it.
__device__ inline bool comes_last(uint32_t* ticket, int count) {
  __shared__ bool last;
  __syncthreads();  // all threads have written, and read the previous result
  if (count == 1) return true;
  if (threadIdx.x == 0) {
    __threadfence();  // its writes are visible before its ticket ...
    last = atomicAdd(ticket, 1u) + 1 == static_cast<uint32_t>(count);
    __threadfence();  // ... and those of others are read after their tickets
  }
  __syncthreads();
  return last;
}

// The sum of p[c * stride] for c = begin, begin + step, ...
__device__ inline double strided_sum(const double* p, int64_t stride, int begin, int end,
                                     int step) {
  double total = 0;
  FM_UNROLL(8)
  for (int c = begin; c < end; c += step) total += p[c * stride];
  return total;
}

// Adds up `sums`, (chunks, width), over the chunks of the block's segment and calls put(k, sum) for
// k < count with a non-negative index(k), its index in a chunk. `tickets` is
// (gridDim.y, chunks + segments) zeros.
//
// In two levels: the last block of every 32nd chunk sums these while others still work, since a
// single block would have too much to read.
template <class Index, class Put>
__device__ void sum_chunks(const SegmentMap& map, int segment, double* sums, int64_t width,
                           int count, uint32_t* tickets, const Index& index, const Put& put) {
  constexpr int kGroups = 32;
  const int first = map.blocks.first[segment], chunks = map.blocks.first[segment + 1] - first;
  const int group = (static_cast<int>(blockIdx.x) - first) % kGroups;
  const int groups = chunks < kGroups ? chunks : kGroups;
  const int line = map.blocks.first[map.blocks.count] + map.blocks.count;
  tickets += static_cast<int64_t>(blockIdx.y) * line + first + segment;
  sums += first * width;
  if (!comes_last(tickets + group, (chunks - group - 1) / kGroups + 1)) return;
  if (group + kGroups < chunks)
    for (int k = threadIdx.x; k < count; k += kThreads)
      if (index(k) >= 0) {
        double* own = sums + index(k);
        own[group * width] = strided_sum(own, width, group, chunks, kGroups);
      }
  if (!comes_last(tickets + chunks, groups)) return;
  for (int k = threadIdx.x; k < count; k += kThreads)
    if (index(k) >= 0) put(k, strided_sum(sums + index(k), width, 0, groups, 1));
}

}  // namespace fastmeta::cuda
