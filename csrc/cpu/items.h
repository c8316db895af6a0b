// Loops over the elements of many tensors.
#pragma once

#include <vector>

#include "fastmeta/parallel.h"

namespace fastmeta::cpu::FM_ISA {

// Splits the concatenation of all items, of n elements each, over the threads; calls
// body(item, first, last) for the elements of an item that belong to a thread.
template <class Item, class Body>
void each_item(const Item* items, int64_t count, int64_t grain, const Parallel& parallel,
               const Body& body) {
  std::vector<int64_t> first(count + 1, 0);
  for (int64_t k = 0; k < count; ++k) first[k + 1] = first[k] + items[k].n;
  parallel(first.back(), grain, [&](int64_t begin, int64_t end) {
    for (int64_t k = 0; k < count; ++k) {
      const int64_t from = begin > first[k] ? begin : first[k];
      const int64_t to = end < first[k + 1] ? end : first[k + 1];
      if (from < to) body(items[k], from - first[k], to - first[k]);
    }
  });
}

}  // namespace fastmeta::cpu::FM_ISA
