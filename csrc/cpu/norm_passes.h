// The passes of the norm kernels over some of the images after others, for callers that run them
// while the images are in the cache. `some` is input of one group, with `n` of its images; sums
// over them are added in the order of the calls.
#pragma once

#include <vector>

#include "fastmeta/norm.h"

namespace fastmeta::cpu::FM_ISA {

// The batch statistics.
struct NormMoments {
  std::vector<double> parts, pixels;  // of chunks of pixels

  void add(const NormInput& some, const Parallel& parallel);
  void finish(const NormForwardArgs& args) const;  // writes mean and var
};

// Selects from each window the pixel that max-pooling passes on; which one depends only on the sign
// of the weight. The norm of these pixels, without pooling, has the same outputs as the norm with
// pooling, and the same sums in its backward pass.
void norm_extremes(const NormInput& some, void* extremes, const Parallel& parallel);
inline NormInput norm_of_extremes(NormInput some, const void* extremes) {
  some.x = extremes;
  some.pool = 0;
  some.h /= 2;
  some.w /= 2;
  return some;
}

// z, at given statistics.
void norm_apply(const NormForwardArgs& some, const Parallel& parallel);

// The sums that the gradients depend on.
struct NormBackwardSums {
  std::vector<double> sums;

  void add(const NormBackwardArgs& some, const Parallel& parallel);
  // dx of some images, and the gradients of the parameters; `pixels` is the number of all.
  void apply(const NormBackwardArgs& some, double pixels, const Parallel& parallel) const;
};

}  // namespace fastmeta::cpu::FM_ISA
