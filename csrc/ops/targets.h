// Checks of class numbers.
#pragma once

#include "fastmeta/loss.h"
#include "ops/tensors.h"

namespace fastmeta {

// For contiguous tensors on the CPU: reading a CUDA tensor would synchronise, and there an invalid
// class yields NaN.
inline void require_classes(const Tensor& y, int64_t classes, const std::string& name) {
  const int64_t* values = static_cast<const int64_t*>(y.const_data_ptr());
  for (int64_t i = 0; i < y.numel(); ++i)
    FM_REQUIRE((values[i] >= 0 && values[i] < classes) || values[i] == kIgnoredTarget,
               name + ": class " + std::to_string(values[i]) + " is not one of the " +
                   std::to_string(classes) + " outputs, 0 to " + std::to_string(classes - 1) + ".");
}

}  // namespace fastmeta
