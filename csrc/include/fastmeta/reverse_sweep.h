// Which inner gradients the reverse sweep over the inner steps differentiates, for arguments with
//
//   differentiated, masks    (masks, count) zeros and ones on the host: the layers (or parameters)
//                            whose inner gradient g is differentiated; one mask per inner step, the
//                            last one for all further steps
//   lam_d, lam_c, lam_2      with _m for these layers, the sweep takes every inner step by
//                            v <- v - lr H d, where
//                            d = (lam_d + lam_c + lam_2) v_m
//                                - (lam_2 + lam_c <g_m, v_m> / |g_m|^2) g_m
#pragma once

#include <algorithm>
#include <cstdint>

namespace fastmeta {

// The mask of an inner step.
template <class Args>
const int64_t* mask_of(const Args& args, int64_t step) {
  return args.differentiated + std::min(step, args.masks - 1) * args.count;
}

// The lowest layer whose inner gradient is differentiated; `count` if there is none.
template <class Args>
int64_t lowest_differentiated(const Args& args, int64_t step) {
  if (args.lam_d == 0 && args.lam_c == 0 && args.lam_2 == 0) return args.count;
  const int64_t* mask = mask_of(args, step);
  return std::find(mask, mask + args.count, 1) - mask;
}

// Inner steps that the reverse sweep needs: all of them, or none for the first-order gradient.
template <class Args>
int64_t kept_steps(const Args& args) {
  for (int64_t k = 0; k < std::min(args.steps, args.masks); ++k)
    if (lowest_differentiated(args, k) < args.count) return args.steps;
  return 0;
}

// Whether d is a multiple of v_m, so that lam_d alone scales the rate.
template <class Args>
bool scales_only(const Args& args) {
  return args.lam_c == 0 && args.lam_2 == 0;
}

}  // namespace fastmeta
