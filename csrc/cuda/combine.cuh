// combine kernel: each thread sums kCombineColumns columns over the tasks.
#pragma once

#include "cuda/common.cuh"
#include "cuda/launch.h"
#include "fastmeta/combine.h"

namespace fastmeta::cuda {

constexpr int kCombineColumns = 4;
constexpr int kPiecesPerLaunch = 512;

// A CombinePiece on the device.
struct CombineItem {
  void* out;  // of column `begin`
  int64_t begin;
  int64_t n;
  int64_t segment;
};

struct CombineTable {
  BlockMap<kPiecesPerLaunch> map;
  CombineItem items[kPiecesPerLaunch];
};

template <class T, int kBuffers>
__global__ void combine_kernel(Matrix g0, Matrix g1, const Acc<T>* coef, int64_t segments,
                               const __grid_constant__ CombineTable table) {
  using A = Acc<T>;
  const int item = table.map.find(blockIdx.x);
  const CombineItem piece = table.items[item];
  const int64_t first =
      static_cast<int64_t>(blockIdx.x - table.map.first[item]) * kThreads * kCombineColumns;
  A acc[kCombineColumns] = {};
  for (int b = 0; b < kBuffers; ++b) {
    const Matrix g = b == 0 ? g0 : g1;
    for (int64_t i = 0; i < g.rows; ++i) {
      const A c = coef[(i * segments + piece.segment) * kBuffers + b];
      const T* row = static_cast<const T*>(g.data) + i * g.stride + piece.begin;
      for (int k = 0; k < kCombineColumns; ++k) {
        const int64_t p = first + k * kThreads + threadIdx.x;
        if (p < piece.n) acc[k] += c * widen(row[p]);
      }
    }
  }
  for (int k = 0; k < kCombineColumns; ++k) {
    const int64_t p = first + k * kThreads + threadIdx.x;
    if (p < piece.n) static_cast<T*>(piece.out)[p] = narrow<T>(acc[k]);
  }
}

template <class Launch>
void launch_combine(const CombineArgs& args, const Launch& launch) {
  dispatch(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const std::vector<CombinePiece> pieces = make_pieces(args, args.g[0].cols);
    const auto kernel = args.buffers == 1 ? combine_kernel<T, 1> : combine_kernel<T, 2>;
    for_each_item_group<CombineTable, kPiecesPerLaunch>(
        static_cast<int64_t>(pieces.size()),
        [&](int64_t k) { return blocks_for(pieces[k].n, kThreads * kCombineColumns); },
        [&](CombineTable& table, int slot, int64_t k) {
          const CombinePiece& piece = pieces[k];
          table.items[slot] = {piece_out<T>(args, piece), piece.begin, piece.n, piece.segment};
        },
        [&](const CombineTable& table, int blocks) {
          launch(kernel, blocks, kThreads, args.g[0], args.g[args.buffers - 1],
                 static_cast<const Acc<T>*>(args.coef), args.segments.count, table);
        });
  });
}

}  // namespace fastmeta::cuda
