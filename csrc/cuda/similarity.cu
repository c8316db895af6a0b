#include "cuda/similarity.cuh"

#include "cuda/launch.h"

namespace fastmeta::cuda {

// grid.y holds the rows, and ends at 65,535: the binding refuses more tasks.
int row_similarity(const RowSimilarityArgs& args, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  const int64_t tasks = args.a.rows;
  if (tasks == 0) return cudaSuccess;
  dispatch(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    for_each_segment_group(
        args.segments, args.a.cols, [&](const SegmentMap& map, int64_t segment, int64_t chunk) {
          double* partial = args.partial + chunk * tasks * 3;
          const dim3 grid(map.blocks.first[map.blocks.count], static_cast<unsigned>(tasks));
          if (grid.x > 0)
            row_partial_kernel<T><<<grid, kThreads, 0, queue>>>(args.a, args.b, map, partial);
          const int64_t outputs = tasks * map.blocks.count * 3;
          row_finish_kernel<Acc<T>><<<blocks_for(outputs * kWarp, kThreads), kThreads, 0, queue>>>(
              partial, map, tasks, segment, args.segments.count, static_cast<Acc<T>*>(args.out));
        });
  });
  return cudaGetLastError();
}

int mean_similarity(const MeanSimilarityArgs& args, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  const int64_t tasks = args.g.rows;
  if (tasks == 0) return cudaSuccess;
  const int64_t bounds[2] = {0, args.g.cols};
  dispatch(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    for_each_segment_group({bounds, 1}, args.g.cols, [&](const SegmentMap& map, int64_t, int64_t) {
      const dim3 grid(map.blocks.first[1], blocks_for(tasks, kMeanRows));
      if (grid.x > 0)
        mean_partial_kernel<T><<<grid, kThreads, 0, queue>>>(args.g, map, args.partial);
      mean_finish_kernel<Acc<T>><<<blocks_for(tasks * 2 * kWarp, kThreads), kThreads, 0, queue>>>(
          args.partial, map.blocks.first[1], tasks, static_cast<Acc<T>*>(args.out));
    });
  });
  return cudaGetLastError();
}

}  // namespace fastmeta::cuda
