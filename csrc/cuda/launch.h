// Host side of the launches: block maps, and groups of items that fit the kernel parameters.
//
// The launch_* functions beside the kernels take a launcher, `launch(kernel, grid, threads,
// arguments...)`, so that the CUDA launcher (cuda/stream.h) and the emulation run the same grids
// and tables.
#pragma once

#include "cuda/common.cuh"
#include "fastmeta/matrix.h"

namespace fastmeta::cuda {

// Scratch of a sum over chunks, see count_partials.
struct Partials {
  double* sums;
  uint32_t* tickets;
};

// Calls run(map, first_segment, partials) for groups of kSegmentsPerLaunch segments, for grids with
// `grid_rows` rows of blocks. The tickets are zeroed on the same stream before the kernels, also in
// CUDA graphs.
template <class Launch, class Run>
void for_each_segment_group(Segments segments, int64_t cols, double* partial, int64_t sums,
                            int64_t grid_rows, const Launch& launch, const Run& run) {
  const int64_t chunks = count_chunks(segments, cols, kCudaChunking);
  auto* tickets = reinterpret_cast<uint32_t*>(partial + chunks * sums);
  launch.zero(tickets, grid_rows * (chunks + segments.count) * sizeof(uint32_t));
  int64_t chunk = 0;
  for (int64_t s = 0; s < segments.count; s += kSegmentsPerLaunch) {
    SegmentMap map{};
    map.width = chunk_width(cols, kCudaChunking);
    const int64_t rest = segments.count - s;
    map.blocks.count = static_cast<int32_t>(rest < kSegmentsPerLaunch ? rest : kSegmentsPerLaunch);
    int32_t blocks = 0;
    for (int32_t k = 0; k < map.blocks.count; ++k) {
      map.blocks.first[k] = blocks;
      map.bounds[k] = segments.bounds[s + k];
      blocks += static_cast<int32_t>(count_chunks(segments, s + k, map.width));
    }
    map.blocks.first[map.blocks.count] = blocks;
    map.bounds[map.blocks.count] = segments.bounds[s + map.blocks.count];
    run(map, s, Partials{partial + chunk * sums, tickets + (chunk + s) * grid_rows});
    chunk += blocks;
  }
}

// Calls launch(table, blocks) for groups of kCapacity items; blocks_of(k) and put(table, slot, k)
// describe item k.
template <class Table, int kCapacity, class BlocksOf, class Put, class Launch>
void for_each_item_group(int64_t count, const BlocksOf& blocks_of, const Put& put,
                         const Launch& launch) {
  constexpr int64_t kMaxBlocks = 1 << 30;
  for (int64_t k = 0; k < count;) {
    Table table{};
    int64_t blocks = 0;
    int slot = 0;
    while (k < count && slot < kCapacity && (slot == 0 || blocks + blocks_of(k) < kMaxBlocks)) {
      table.map.first[slot] = static_cast<int32_t>(blocks);
      put(table, slot, k);
      blocks += blocks_of(k);
      ++slot;
      ++k;
    }
    table.map.first[slot] = static_cast<int32_t>(blocks);
    table.map.count = slot;
    if (blocks > 0) launch(table, static_cast<int>(blocks));
  }
}

inline int blocks_for(int64_t n, int64_t each) {
  return static_cast<int>((n + each - 1) / each);
}

}  // namespace fastmeta::cuda
