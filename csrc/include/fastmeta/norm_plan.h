// How the CUDA kernels of the norm ops divide work among blocks, and the memory between their
// passes. Both depend on sizes alone, so sums have the same order on every GPU.
#pragma once

#include "fastmeta/norm.h"

namespace fastmeta {

constexpr int kNormThreads = 256;  // per block
constexpr int kNormMaxWide = 16;   // threads along channels; the others take more pixels
constexpr int kNormPixels = 4;     // per thread and iteration: a pooling window, or any four

// Pixel indices are 32 bits wide, including a block's last stride.
constexpr int64_t kMaxNormPixels = int64_t{1} << 30;

// A unit is a pixel, or a pooling window, which may be incomplete at odd edges.
struct NormPlan {
  int lanes;   // adjacent channels per thread: 16 bytes if they divide c, else one
  int wide;    // threads along channels, a power of two
  int step;    // and along units
  int tiles;   // blocks along channels
  int units;   // per group
  int chunk;   // units per block
  int chunks;  // per group
};

inline NormPlan norm_plan(const NormInput& in, bool pool) {
  constexpr int64_t kBlocks = 1024;  // fills large GPUs; more blocks mean more partial sums
  const int64_t sixteen_bytes = in.dtype == DType::f64 ? 2 : 4;
  const int64_t lanes = in.c % sixteen_bytes ? 1 : sixteen_bytes;
  int64_t wide = 1;
  while (wide < kNormMaxWide && wide * lanes < in.c) wide *= 2;
  const int64_t step = kNormThreads / wide, tiles = (in.c + wide * lanes - 1) / (wide * lanes);
  const int64_t units = in.n * (pool ? (in.h + 1) / 2 * ((in.w + 1) / 2) : in.h * in.w);
  const int64_t min_chunk = pool ? step : step * kNormPixels;
  const int64_t chunk = (units * in.groups * tiles / (min_chunk * kBlocks) + 1) * min_chunk;
  const auto narrow = [](int64_t k) { return static_cast<int>(k); };
  return {narrow(lanes),
          narrow(wide),
          narrow(step),
          narrow(tiles),
          narrow(units),
          narrow(chunk),
          narrow((units + chunk - 1) / chunk)};
}

constexpr int kNormMoments = 2, kNormBackwardSums = 2, kNormSecondSums = 5;
constexpr int kNormBackwardCoefs = 3, kNormSecondCoefs = 7;

struct NormScratch {
  double* partial;  // (groups * chunks, sums, c)
  void* coef;       // (coefs, groups, c), dtype of the images
};

inline int64_t count_norm_partials(const NormInput& in, const NormPlan& plan, int sums) {
  return in.groups * plan.chunks * sums * in.c;
}

// Image pointers must be aligned to 16 bytes, and a group have at most kMaxNormPixels.
namespace cuda {
int norm_forward(const NormForwardArgs& args, double* partial, void* stream);
int norm_backward(const NormBackwardArgs& args, const NormScratch& scratch, void* stream);
int norm_second(const NormSecondArgs& args, const NormScratch& scratch, void* stream);
}  // namespace cuda

}  // namespace fastmeta
