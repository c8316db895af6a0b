#include "fastmeta/pack.h"

#include <cstring>
#include <vector>

namespace fastmeta::cpu {

void pack(const Copy* copies, int64_t count, const Parallel& parallel) {
  constexpr int64_t kGrain = 1 << 16;        // minimum bytes per thread
  std::vector<int64_t> first(count + 1, 0);  // offsets in the concatenation of all copies
  for (int64_t k = 0; k < count; ++k) first[k + 1] = first[k] + copies[k].bytes;
  parallel(first.back(), kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t k = 0; k < count; ++k) {
      const int64_t from = begin > first[k] ? begin : first[k];
      const int64_t to = end < first[k + 1] ? end : first[k + 1];
      if (from < to)
        memcpy(static_cast<char*>(copies[k].target) + from - first[k],
               static_cast<const char*>(copies[k].source) + from - first[k], to - from);
    }
  });
}

}  // namespace fastmeta::cpu
