// Loops over the vectors of contiguous elements.
#pragma once

#include "cpu/simd.h"

namespace fastmeta::cpu::FM_ISA {

// Calls body(get, put) for every vector of elements [begin, end): get(from, fill) reads it in the
// accumulation dtype, put(to, v) writes it. `fill` pads the last vector.
template <class T, class Body>
void each_vector(int64_t begin, int64_t end, const Body& body) {
  using A = Acc<T>;
  int64_t p = begin;
  for (; p + kLanes<A> <= end; p += kLanes<A>)
    body([&](const void* from, A) { return load(static_cast<const T*>(from) + p); },
         [&](void* to, Vec<A> v) { store(static_cast<T*>(to) + p, v); });
  if (p == end) return;
  body(
      [&](const void* from, A fill) {
        Vec<A> v = splat<A>(fill);
        for (int64_t k = 0; k < end - p; ++k) v[k] = widen(static_cast<const T*>(from)[p + k]);
        return v;
      },
      [&](void* to, Vec<A> v) {
        for (int64_t k = 0; k < end - p; ++k) static_cast<T*>(to)[p + k] = narrow<T>(A{v[k]});
      });
}

template <class A>
inline A lanes_total(Vec<A> v) {
  A total = 0;
  for (int64_t i = 0; i < kLanes<A>; ++i) total += v[i];
  return total;
}

}  // namespace fastmeta::cpu::FM_ISA
