// Sums over the chunks of a segment, which are blocks of one launch: by whichever block comes last,
// but in a fixed order.
#pragma once

#include "cuda/common.cuh"

namespace fastmeta::cuda {

// Whether this block is the last of `count` to come here; it then sees what the others wrote
// before. The ticket must be zero at first. Every thread of the block must call it.
__device__ inline bool comes_last(uint32_t* ticket, int count) {
  __shared__ bool last;
  __syncthreads();  // the block has written, and read the previous answer
  if (count == 1) return true;
  if (threadIdx.x == 0) {
    __threadfence();  // what it wrote is seen before its ticket ...
    last = atomicAdd(ticket, 1u) + 1 == static_cast<uint32_t>(count);
    __threadfence();  // ... and what others wrote is read after theirs
  }
  __syncthreads();
  return last;
}

// The sum of p[c * apart] for c = begin, begin + step, ...
__device__ inline double strided_sum(const double* p, int64_t apart, int begin, int end, int step) {
  double total = 0;
  FM_UNROLL(8)
  for (int c = begin; c < end; c += step) total += p[c * apart];
  return total;
}

// Adds up what the chunks of the block's segment have at `sums`, (chunks, width), and does
// put(k, sum) for k < count, whose place in a chunk is place(k), or negative if there is none.
// `tickets` is (gridDim.y, chunks + segments) zeros.
//
// Every 32nd chunk first, by the last of their blocks, while others still work: one block alone
// would have too much to read.
template <class Place, class Put>
__device__ void sum_chunks(const SegmentMap& map, int segment, double* sums, int64_t width,
                           int count, uint32_t* tickets, const Place& place, const Put& put) {
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
      if (place(k) >= 0) {
        double* own = sums + place(k);
        own[group * width] = strided_sum(own, width, group, chunks, kGroups);
      }
  if (!comes_last(tickets + chunks, groups)) return;
  for (int k = threadIdx.x; k < count; k += kThreads)
    if (place(k) >= 0) put(k, strided_sum(sums + place(k), width, 0, groups, 1));
}

}  // namespace fastmeta::cuda
