// The losses that kernels compute, both with mean reduction.
#pragma once

#include <cstdint>

namespace fastmeta {

// In the order of LOSSES in fastmeta/reference/mlp.py.
enum class Loss : int { mse, cross_entropy };
constexpr int64_t kLosses = 2;

// Cross-entropy ignores targets of this value (torch's default ignore_index).
constexpr int64_t kIgnoredTarget = -100;

}  // namespace fastmeta
