// pack kernel: many copies in one launch, 16 bytes at a time where both ends are aligned.
#pragma once

#include "cuda/lanes.cuh"
#include "cuda/launch.h"
#include "fastmeta/pack.h"

namespace fastmeta::cuda {

constexpr int kCopiesPerLaunch = 1024;
constexpr int64_t kCopyBytes = kThreads * 64;  // per block

struct CopyTable {
  BlockMap<kCopiesPerLaunch> map;
  Copy copies[kCopiesPerLaunch];
};

template <class Word>
__device__ inline void copy_words(const char* source, char* target, int64_t bytes) {
  const int64_t words = bytes / static_cast<int64_t>(sizeof(Word));
  for (int64_t w = threadIdx.x; w < words; w += kThreads)
    reinterpret_cast<Word*>(target)[w] = reinterpret_cast<const Word*>(source)[w];
}

__global__ void pack_kernel(const __grid_constant__ CopyTable table) {
  const int k = table.map.find(blockIdx.x);
  const Copy copy = table.copies[k];
  const int64_t begin = static_cast<int64_t>(blockIdx.x - table.map.first[k]) * kCopyBytes;
  const int64_t bytes = copy.bytes - begin < kCopyBytes ? copy.bytes - begin : kCopyBytes;
  const char* source = static_cast<const char*>(copy.source) + begin;
  char* target = static_cast<char*>(copy.target) + begin;
  if (aligned16(source) && aligned16(target)) {
    const int64_t whole = bytes / 16 * 16;
    copy_words<Bytes16>(source, target, whole);
    copy_words<uint16_t>(source + whole, target + whole, bytes - whole);
  } else {
    copy_words<uint16_t>(source, target, bytes);
  }
}

template <class Launch>
void launch_pack(const Copy* copies, int64_t count, const Launch& launch) {
  for_each_item_group<CopyTable, kCopiesPerLaunch>(
      count, [&](int64_t k) { return blocks_for(copies[k].bytes, kCopyBytes); },
      [&](CopyTable& table, int slot, int64_t k) { table.copies[slot] = copies[k]; },
      [&](const CopyTable& table, int blocks) { launch(pack_kernel, blocks, kThreads, table); });
}

}  // namespace fastmeta::cuda
