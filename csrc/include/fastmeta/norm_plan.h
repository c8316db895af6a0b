// How the CUDA kernels of the norm ops share the work among blocks, and the memory between their
// passes. By sizes alone: sums are added in one order, whatever the GPU.
#pragma once

#include "fastmeta/norm.h"

namespace fastmeta {

constexpr int kNormThreads = 256;  // of a block
constexpr int kNormWidest = 16;    // threads along channels; the others take further pixels
constexpr int kNormPixels = 4;     // that a thread visits at a time: of a pooling window, or any

// Indices of pixels are 32 bits, with room for a block's strides.
constexpr int64_t kMostNormPixels = int64_t{1} << 30;

// A unit is a pixel, or a pooling window, which odd edges leave incomplete.
struct NormPlan {
  int lanes;   // neighbouring channels of a thread: 16 bytes of them where they divide c, or one
  int wide;    // threads along channels, a power of two
  int step;    // and along units
  int tiles;   // blocks along channels
  int units;   // of a group
  int chunk;   // units of a block
  int chunks;  // of a group
};

inline NormPlan norm_plan(const NormInput& in, bool pool) {
  constexpr int64_t kBlocks = 1024;  // fill large GPUs; more make more partial sums
  const int64_t sixteen_bytes = in.dtype == DType::f64 ? 2 : 4;
  const int64_t lanes = in.c % sixteen_bytes ? 1 : sixteen_bytes;
  int64_t wide = 1;
  while (wide < kNormWidest && wide * lanes < in.c) wide *= 2;
  const int64_t step = kNormThreads / wide, tiles = (in.c + wide * lanes - 1) / (wide * lanes);
  const int64_t units = in.n * (pool ? (in.h + 1) / 2 * ((in.w + 1) / 2) : in.h * in.w);
  const int64_t least = pool ? step : step * kNormPixels;
  const int64_t chunk = (units * in.groups * tiles / (least * kBlocks) + 1) * least;
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

// Pointers to images are aligned to 16 bytes, and a group has at most kMostNormPixels.
namespace cuda {
int norm_forward(const NormForwardArgs& args, double* partial, void* stream);
int norm_backward(const NormBackwardArgs& args, const NormScratch& scratch, void* stream);
int norm_second(const NormSecondArgs& args, const NormScratch& scratch, void* stream);
}  // namespace cuda

}  // namespace fastmeta
