// combine kernel: each thread sums kCombineColumns columns over the tasks.
#pragma once

#include "cuda/common.cuh"
#include "cuda/launch.h"
#include "fastmeta/combine.h"

namespace fastmeta::cuda {

constexpr int kCombineColumns = 4;
constexpr int kPiecesPerLaunch = 512;

// Columns inside one segment of coef and one output tensor.
struct CombinePiece {
  void* out;  // of column `begin`
  int64_t begin;
  int64_t n;
  int64_t segment;
};

struct CombineTable {
  BlockMap<kPiecesPerLaunch> map;
  CombinePiece pieces[kPiecesPerLaunch];
};

template <class T, int kBuffers>
__global__ void combine_kernel(Matrix g0, Matrix g1, const Acc<T>* coef, int64_t segments,
                               const __grid_constant__ CombineTable table) {
  using A = Acc<T>;
  const int item = table.map.find(blockIdx.x);
  const CombinePiece piece = table.pieces[item];
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

// The columns of every output tensor, cut where the segments of coef meet.
inline std::vector<CombinePiece> make_pieces(const CombineArgs& args, int64_t element) {
  std::vector<CombinePiece> pieces;
  const Segments tensors = args.pieces;
  int64_t s = 0;
  for (int64_t t = 0; t < tensors.count; ++t)
    for (int64_t begin = tensors.bounds[t]; begin < tensors.bounds[t + 1];) {
      while (args.segments.bounds[s + 1] <= begin) ++s;
      const int64_t stop = args.segments.bounds[s + 1] < tensors.bounds[t + 1]
                               ? args.segments.bounds[s + 1]
                               : tensors.bounds[t + 1];
      char* out = static_cast<char*>(args.out[t]) + (begin - tensors.bounds[t]) * element;
      pieces.push_back({out, begin, stop - begin, s});
      begin = stop;
    }
  return pieces;
}

template <class Launch>
void launch_combine(const CombineArgs& args, const Launch& launch) {
  dispatch(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const std::vector<CombinePiece> pieces = make_pieces(args, sizeof(T));
    const auto kernel = args.buffers == 1 ? combine_kernel<T, 1> : combine_kernel<T, 2>;
    for_each_item_group<CombineTable, kPiecesPerLaunch>(
        static_cast<int64_t>(pieces.size()),
        [&](int64_t k) { return blocks_for(pieces[k].n, kThreads * kCombineColumns); },
        [&](CombineTable& table, int slot, int64_t k) { table.pieces[slot] = pieces[k]; },
        [&](const CombineTable& table, int blocks) {
          launch(kernel, blocks, kThreads, args.g[0], args.g[args.buffers - 1],
                 static_cast<const Acc<T>*>(args.coef), args.segments.count, table);
        });
  });
}

}  // namespace fastmeta::cuda
