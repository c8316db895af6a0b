// Shared by the kernels with planted faults: each reads n values and writes n, with kSide threads
// per block.
#pragma once

#include "emulation/cuda.h"

namespace fastmeta::emulation::faults {

constexpr int kSide = 64;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ inline int global_index() {
  return static_cast<int>(blockIdx.x * kSide + threadIdx.x);
}

}  // namespace fastmeta::emulation::faults
