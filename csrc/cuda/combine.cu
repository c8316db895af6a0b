#include "cuda/combine.cuh"

#include "cuda/launch.h"

namespace fastmeta::cuda {
namespace {

std::vector<CombinePiece> make_pieces(const CombineArgs& args, int64_t element) {
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

}  // namespace

int combine(const CombineArgs& args, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  dispatch(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const std::vector<CombinePiece> pieces = make_pieces(args, sizeof(T));
    for_each_item_group<CombineTable, kPiecesPerLaunch>(
        static_cast<int64_t>(pieces.size()),
        [&](int64_t k) { return blocks_for(pieces[k].n, kThreads * kCombineColumns); },
        [&](CombineTable& table, int slot, int64_t k) { table.pieces[slot] = pieces[k]; },
        [&](const CombineTable& table, int blocks) {
          const auto* coef = static_cast<const Acc<T>*>(args.coef);
          if (args.buffers == 1)
            combine_kernel<T, 1><<<blocks, kThreads, 0, queue>>>(args.g[0], args.g[0], coef,
                                                                 args.segments.count, table);
          else
            combine_kernel<T, 2><<<blocks, kThreads, 0, queue>>>(args.g[0], args.g[1], coef,
                                                                 args.segments.count, table);
        });
  });
  return cudaGetLastError();
}

}  // namespace fastmeta::cuda
