// What the products of a convolution share: which method runs, and what a thread takes at once.
#pragma once

#include "cpu/arena.h"
#include "cpu/direct.h"
#include "cpu/winograd.h"

namespace fastmeta::cpu::FM_ISA {

constexpr int64_t kBlock = 48;  // pixels or tiles, whose numbers stay in the second-level cache

// Whether Winograd's products, half as many again for the transforms, are fewer.
inline bool by_winograd(const ConvShape& s) {
  if (s.stride != 1 || std::min(s.in, s.out) < 16) return false;
  const int64_t tiles = (s.h + 1) / 2 * ((s.w + 1) / 2);
  const int64_t neighbours = (3 * s.h - 2) * (3 * s.w - 2);
  return 3 * winograd::kPlaces * tiles < 2 * neighbours;
}

// Pieces of so many multiply-adds that are worth a thread.
inline int64_t grain_of(int64_t work) {
  constexpr int64_t kLeast = int64_t{1} << 19;
  return kLeast / std::clamp<int64_t>(work, 1, kLeast);
}

}  // namespace fastmeta::cpu::FM_ISA
