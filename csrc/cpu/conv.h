// What the products of a convolution share: which method runs, and how pixels are cut into blocks.
#pragma once

#include <algorithm>

#include "cpu/arena.h"
#include "cpu/neighbours.h"
#include "cpu/winograd.h"

namespace fastmeta::cpu::FM_ISA {

constexpr int64_t kBlock = 48;  // pixels or tiles that stay in the second-level cache
constexpr int64_t kDepth = 96;
constexpr int64_t kLeastWork = int64_t{1} << 19;  // multiply-adds that are worth a thread

// Whether Winograd's products, half as many again for the transforms, are fewer.
inline bool by_winograd(const ConvShape& s) {
  if (s.stride != 1 || std::min(s.in, s.out) < 16) return false;
  const int64_t tiles = (s.h + 1) / 2 * ((s.w + 1) / 2);
  return 3 * winograd::kPlaces * tiles < 2 * 9 * s.h * s.w;
}

inline int64_t blocks_of(int64_t units) {
  return (units + kBlock - 1) / kBlock;
}

inline int64_t grain_of(int64_t work) {
  return kLeastWork / std::max<int64_t>(1, std::min(work, kLeastWork));
}

}  // namespace fastmeta::cpu::FM_ISA
