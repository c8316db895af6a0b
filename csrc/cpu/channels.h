// Vectors of neighbouring channels of channels-last tensors, and their sums over many pixels.
#pragma once

#include <type_traits>

#include "cpu/simd.h"

namespace fastmeta::cpu::FM_ISA {

// All lanes of a vector, or the first n of the last, partial one.
template <class A>
struct All {
  static constexpr int64_t n = kLanes<A>;
  Vec<A> load(const A* p) const { return FM_ISA::load(p); }
  void store(A* p, Vec<A> v) const { FM_ISA::store(p, v); }
};
template <class A>
struct Some {
  int64_t n;
  Vec<A> load(const A* p) const { return load_some(p, n, Vec<A>{}); }
  void store(A* p, Vec<A> v) const { store_some(p, n, v); }
};

// Calls body(lanes, c) for every vector of channels; c is its first channel.
template <class A, class Body>
[[gnu::always_inline]] inline void each_vector(int64_t channels, const Body& body) {
  int64_t c = 0;
  for (; c + kLanes<A> <= channels; c += kLanes<A>) body(All<A>{}, c);
  if (c < channels) body(Some<A>{channels - c}, c);
}

using First = std::integral_constant<int, 0>;
using Second = std::integral_constant<int, 1>;

// K sums per channel, in two accumulators of type A that spill() regularly adds to doubles.
template <class A, int K>
struct Sums {
  typedef double Wide __attribute__((vector_size(kLanes<A> * 8)));
  Vec<A> chains[K][2] = {};
  Wide wide[K] = {};

  [[gnu::always_inline]] void spill() {
    for (int k = 0; k < K; ++k) {
      for (const Vec<A>& chain : chains[k]) wide[k] += __builtin_convertvector(chain, Wide);
      chains[k][0] = chains[k][1] = Vec<A>{};
    }
  }
  // Sum k of the first n channels goes to out[k * channels].
  void write(double* out, int64_t n, int64_t channels) const {
    for (int k = 0; k < K; ++k)
      for (int64_t i = 0; i < n; ++i) out[k * channels + i] = wide[k][i];
  }
};

}  // namespace fastmeta::cpu::FM_ISA
