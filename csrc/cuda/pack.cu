#include "cuda/pack.cuh"

#include "cuda/launch.h"

namespace fastmeta::cuda {

int pack(const Copy* copies, int64_t count, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  for_each_item_group<CopyTable, kCopiesPerLaunch>(
      count, [&](int64_t k) { return blocks_for(copies[k].bytes, kCopyBytes); },
      [&](CopyTable& table, int slot, int64_t k) { table.copies[slot] = copies[k]; },
      [&](const CopyTable& table, int blocks) {
        pack_kernel<<<blocks, kThreads, 0, queue>>>(table);
      });
  return cudaGetLastError();
}

}  // namespace fastmeta::cuda
