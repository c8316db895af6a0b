// Overlap checks of in-place ops: memory they write must not be read for another element, nor be
// written twice.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "ops/tensors.h"

namespace fastmeta {

// A range of memory. A source may coincide with the target of the same number: each element is read
// before it is written.
struct Span {
  const char* begin;
  int64_t bytes;
  int64_t number;

  const char* end() const { return begin + bytes; }
};

inline Span span_of(const Tensor& dense, int64_t number) {
  return {static_cast<const char*>(dense.const_data_ptr()), dense.numel() * element_size(dense),
          number};
}

// Raises if targets overlap each other, or a source other than their own.
inline void require_disjoint(std::vector<Span> targets, const std::vector<Span>& sources,
                             const char* op) {
  const std::string message =
      std::string(op) +
      ": tensors to write share memory with each other or with what is read. Clone them first.";
  targets.erase(std::remove_if(targets.begin(), targets.end(), [](Span s) { return !s.bytes; }),
                targets.end());
  std::sort(targets.begin(), targets.end(), [](Span a, Span b) { return a.begin < b.begin; });
  for (size_t k = 1; k < targets.size(); ++k)
    FM_REQUIRE(targets[k - 1].end() <= targets[k].begin, message);
  for (const Span& source : sources) {
    auto target = std::partition_point(targets.begin(), targets.end(),
                                       [&](Span t) { return t.end() <= source.begin; });
    for (; source.bytes && target != targets.end() && target->begin < source.end(); ++target)
      FM_REQUIRE(target->begin == source.begin && target->bytes == source.bytes &&
                     target->number == source.number,
                 message);
  }
}

}  // namespace fastmeta
