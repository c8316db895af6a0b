// Shared by the convolution kernels: choice of the algorithm and work sizes.
#pragma once

#include "cpu/arena.h"
#include "cpu/direct.h"
#include "cpu/winograd.h"

namespace fastmeta::cpu::FM_ISA {

constexpr int64_t kBlock = 48;  // pixels or tiles whose values fit the L2 cache

// Whether Winograd's algorithm needs fewer products, counting its transforms as half as many again.
inline bool by_winograd(const ConvShape& s) {
  if (s.stride != 1 || std::min(s.in, s.out) < 16) return false;
  const int64_t tiles = (s.h + 1) / 2 * ((s.w + 1) / 2);
  const int64_t neighbours = (3 * s.h - 2) * (3 * s.w - 2);
  return 3 * winograd::kPositions * tiles < 2 * neighbours;
}

// The grain, in items of `work` multiply-adds, that is worth a thread.
inline int64_t grain_of(int64_t work) {
  constexpr int64_t kMinWork = int64_t{1} << 19;
  return kMinWork / std::clamp<int64_t>(work, 1, kMinWork);
}

}  // namespace fastmeta::cpu::FM_ISA
