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
