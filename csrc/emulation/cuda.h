// The part of CUDA that the kernels use, on a CPU. Include it before the kernels, whose sources are
// compiled unchanged; launches are in emulation/launch.h.
//
// It checks arithmetic, indexing, barriers, shuffles, tensor core instructions (emulation/mma.h),
// asynchronous copies, and fences around atomics. It cannot show speed, occupancy, the memory model
// (threads run one after another), warp-synchronous assumptions that a real scheduler breaks, or
// the GPU's own rounding of sqrt, exp and fused multiply-adds.
#pragma once

#include <cstdint>
#include <cstring>

#include "emulation/block.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  fastmeta::emulation::block().barrier({"__syncthreads", file, line});
}

namespace fastmeta::emulation {

// x of lane `source`, or of the caller if `source` is out of range.
template <class T>
T shuffle(CallSite call_site, unsigned mask, T x, int source, bool in_range) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles take 4 or 8 bytes");
  uint64_t bits = 0;
  memcpy(&bits, &x, sizeof(T));
  bits = block().exchange(call_site, mask, in_range ? source : block().lane(), bits);
  memcpy(&x, &bits, sizeof(T));
  return x;
}

// The first lane of the caller's group of `width` lanes.
inline int group(int width) {
  const bool power = width > 0 && width <= kLanes && !(width & (width - 1));
  if (!power) block().fail("shuffles over a width that is no power of two up to 32");
  return block().lane() & ~(width - 1);
}

inline unsigned vote(CallSite call_site, unsigned mask, bool holds) {
  return static_cast<unsigned>(block().exchange(call_site, mask, Block::kVote, holds));
}

}  // namespace fastmeta::emulation

template <class T>
T __shfl_sync(unsigned mask, T x, int source, int width = 32, const char* file = __builtin_FILE(),
              int line = __builtin_LINE()) {
  using namespace fastmeta::emulation;
  const int from = group(width) + (source & (width - 1));
  return shuffle({"__shfl_sync", file, line}, mask, x, from, true);
}

template <class T>
T __shfl_down_sync(unsigned mask, T x, unsigned delta, int width = 32,
                   const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  using namespace fastmeta::emulation;
  const int from = block().lane() + static_cast<int>(delta);
  return shuffle({"__shfl_down_sync", file, line}, mask, x, from, from < group(width) + width);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T x, int flip, int width = 32, const char* file = __builtin_FILE(),
                  int line = __builtin_LINE()) {
  using namespace fastmeta::emulation;
  const int from = block().lane() ^ flip;
  return shuffle({"__shfl_xor_sync", file, line}, mask, x, from, from < group(width) + width);
}

inline unsigned __ballot_sync(unsigned mask, bool holds, const char* file = __builtin_FILE(),
                              int line = __builtin_LINE()) {
  return fastmeta::emulation::vote({"__ballot_sync", file, line}, mask, holds);
}
inline bool __any_sync(unsigned mask, bool holds, const char* file = __builtin_FILE(),
                       int line = __builtin_LINE()) {
  return fastmeta::emulation::vote({"__any_sync", file, line}, mask, holds) != 0;
}
inline bool __all_sync(unsigned mask, bool holds, const char* file = __builtin_FILE(),
                       int line = __builtin_LINE()) {
  return fastmeta::emulation::vote({"__all_sync", file, line}, mask, holds) == mask;
}

inline void __threadfence() {
  fastmeta::emulation::block().fence();
}
inline unsigned atomicAdd(unsigned* at, unsigned x, const char* file = __builtin_FILE(),
                          int line = __builtin_LINE()) {
  fastmeta::emulation::block().atomic({"atomicAdd", file, line});
  const unsigned before = *at;
  *at += x;
  return before;
}

template <class T>
T __ldg(const T* pointer) {
  return *pointer;
}

namespace fastmeta::cuda {

// Replace those of copy_async.cuh and common.cuh.
inline void copy_async(void* to, const void* from, bool given) {
  emulation::block().copy_later(to, given ? from : nullptr);
}
inline void wait_for_copies() {
  emulation::block().wait_for_copies();
}
template <class T>
T* dynamic_shared() {
  return static_cast<T*>(emulation::block().shared());
}

}  // namespace fastmeta::cuda
