#include "cuda/gram.cuh"

#include "cuda/launch.h"

namespace fastmeta::cuda {

int gram(const GramArgs& args, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  const int64_t tasks = args.g.rows;
  if (tasks == 0) return cudaSuccess;
  const int side = blocks_for(tasks, kGramTile);
  dispatch(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    for_each_segment_group(
        args.segments, args.g.cols, [&](const SegmentMap& map, int64_t segment, int64_t chunk) {
          double* partial = args.partial + chunk * tasks * tasks;
          const dim3 grid(map.blocks.first[map.blocks.count], side * (side + 1) / 2);
          if (grid.x > 0) gram_partial_kernel<T><<<grid, kThreads, 0, queue>>>(args.g, map, partial);
          const int64_t outputs = map.blocks.count * tasks * tasks;
          gram_finish_kernel<Acc<T>><<<blocks_for(outputs * kWarp, kThreads), kThreads, 0, queue>>>(
              partial, map, tasks, static_cast<Acc<T>*>(args.out) + segment * tasks * tasks);
        });
  });
  return cudaGetLastError();
}

}  // namespace fastmeta::cuda
