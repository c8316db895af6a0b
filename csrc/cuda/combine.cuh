// combine kernel: each thread sums 16 bytes of columns over the tasks.
#pragma once

#include "cuda/lanes.cuh"
#include "cuda/launch.h"
#include "fastmeta/combine.h"

namespace fastmeta::cuda {

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

// acc[k] += sum_i coef[i * step] * p[i * stride + k].
template <bool kWhole, class T>
__device__ inline void add_rows(const T* p, int64_t rows, int64_t stride, int64_t left,
                                const Acc<T>* coef, int64_t step, Acc<T> (&acc)[kLanes<T>]) {
  FM_UNROLL(4)
  for (int64_t i = 0; i < rows; ++i) {
    Acc<T> x[kLanes<T>];
    load_lanes<kWhole>(p + i * stride, left, x);
    for (int k = 0; k < kLanes<T>; ++k) acc[k] += coef[i * step] * x[k];
  }
}

template <class T, int kBuffers>
__global__ void combine_kernel(Matrix g0, Matrix g1, const Acc<T>* coef, int64_t segments,
                               const __grid_constant__ CombineTable table) {
  const int item = table.map.find(blockIdx.x);
  const CombineItem piece = table.items[item];
  const int64_t block = blockIdx.x - table.map.first[item];
  const int64_t p = (block * kThreads + threadIdx.x) * kLanes<T>, left = piece.n - p;
  if (left <= 0) return;
  Acc<T> acc[kLanes<T>] = {};
  for (int b = 0; b < kBuffers; ++b) {
    const Matrix g = b == 0 ? g0 : g1;
    const T* column = static_cast<const T*>(g.data) + piece.begin + p;
    const Acc<T>* c = coef + piece.segment * kBuffers + b;
    if (left >= kLanes<T> && rows_aligned(column, g.stride))
      add_rows<true>(column, g.rows, g.stride, left, c, segments * kBuffers, acc);
    else
      add_rows<false>(column, g.rows, g.stride, left, c, segments * kBuffers, acc);
  }
  T* out = static_cast<T*>(piece.out) + p;
  store_lanes(out, left, aligned16(out), acc);
}

template <class Launch>
void launch_combine(const CombineArgs& args, const Launch& launch) {
  dispatch(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const std::vector<CombinePiece> pieces = make_pieces(args, args.g[0].cols);
    const auto kernel = args.buffers == 1 ? combine_kernel<T, 1> : combine_kernel<T, 2>;
    for_each_item_group<CombineTable, kPiecesPerLaunch>(
        static_cast<int64_t>(pieces.size()),
        [&](int64_t k) { return blocks_for(pieces[k].n, kThreads * kLanes<T>); },
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
