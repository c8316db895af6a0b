// Per-channel sums over pixels: by a thread, a block, and all blocks of a group.
#pragma once

#include "cuda/pixels.cuh"

namespace fastmeta::cuda {

// Calls body(begin, end) for every 16 pixels of a share: as many as are summed in T before being
// added to a double.
template <bool kPool, class Body>
__device__ void each_chain(const Share& share, const Body& body) {
  const int length = 16 / kNormPixels * Pixels<kPool>::stride(share);
  for (int begin = share.first; begin < share.end; begin += length)
    body(begin, begin + length < share.end ? begin + length : share.end);
}

// K sums for each channel of a thread; add(chain, pixels) adds pixels.
template <class T, int K, int V, bool kPool, class Add>
__device__ void thread_sums(const NormInput& in, const Share& share, double (&sums)[K][V],
                            const Add& add) {
  each_chain<kPool>(share, [&](int begin, int end) {
    T chain[K][V] = {};
    each_pixels<kPool>(in, share, begin, end,
                       [&](const Pixels<kPool>& pixels) { add(chain, pixels); });
    for (int k = 0; k < K; ++k)
      for (int v = 0; v < V; ++v) sums[k][v] += static_cast<double>(chain[k][v]);
  });
}

// Reduces the sums over a block in a fixed order and calls put(k, channel of the block, sum) in one
// thread for each. Every thread must call it, once per kernel.
template <int K, int V, class Put>
__device__ void block_sums(const double (&sums)[K][V], const Put& put) {
  __shared__ double warps[kNormThreads / kWarp][K][kNormMaxWide * V];
  const int wide = blockDim.x, thread = threadIdx.y * wide + threadIdx.x;
  const int lane = thread % kWarp, warp = thread / kWarp;
  for (int k = 0; k < K; ++k)
    for (int v = 0; v < V; ++v) {
      double x = sums[k][v];
      for (int offset = kWarp / 2; offset >= wide; offset /= 2)
        x += __shfl_xor_sync(kFullWarp, x, offset);
      if (lane < wide) warps[warp][k][lane * V + v] = x;
    }
  __syncthreads();
  for (int i = thread; i < K * wide * V; i += kNormThreads) {
    const int k = i / (wide * V), channel = i % (wide * V);
    double total = 0;
    for (int w = 0; w < kNormThreads / kWarp; ++w) total += warps[w][k][channel];
    put(k, channel, total);
  }
}

// Writes the sums of a block to partial, (groups, chunks, K, c).
template <int K, int V>
__device__ void write_partial(const NormInput& in, const double (&sums)[K][V], double* partial) {
  const int64_t chunk = static_cast<int64_t>(blockIdx.x) * gridDim.y + blockIdx.y;
  const int64_t first = static_cast<int64_t>(blockIdx.z) * blockDim.x * V;
  block_sums<K, V>(sums, [&](int k, int channel, double total) {
    if (first + channel < in.c) partial[(chunk * K + k) * in.c + first + channel] = total;
  });
}

// Calls body(gc, sums) for every channel of all groups with the totals of its partial sums. Grid:
// (groups, tiles of kNormMaxWide channels).
template <int K, class Body>
__device__ void each_total(const NormInput& in, int chunks, const double* partial,
                           const Body& body) {
  __shared__ double totals[kNormMaxWide][K];
  const int64_t group = blockIdx.x;
  const int64_t c = static_cast<int64_t>(blockIdx.y) * kNormMaxWide + threadIdx.x;
  double sums[K][1] = {};
  if (c < in.c)
    for (int64_t chunk = threadIdx.y; chunk < chunks; chunk += blockDim.y)
      for (int k = 0; k < K; ++k)
        sums[k][0] += partial[((group * chunks + chunk) * K + k) * in.c + c];
  block_sums<K, 1>(sums, [&](int k, int channel, double total) { totals[channel][k] = total; });
  __syncthreads();
  if (threadIdx.y == 0 && c < in.c) body(group * in.c + c, totals[threadIdx.x]);
}

}  // namespace fastmeta::cuda
