// Loops over the planes of a channel, and sums that stay exact over many of them.
#pragma once

#include <type_traits>

#include "cpu/simd.h"

namespace fastmeta::cpu::FM_ISA {

// All lanes of a vector, or the first n of one that sticks out of a plane.
template <class A>
struct All {
  Vec<A> load(const A* p, Vec<A>) const { return FM_ISA::load(p); }
  void store(A* p, Vec<A> v) const { FM_ISA::store(p, v); }
};
template <class A>
struct Some {
  int64_t n;
  Vec<A> load(const A* p, Vec<A> fill) const { return load_some(p, n, fill); }
  void store(A* p, Vec<A> v) const { store_some(p, n, v); }
};

// body(lanes, i, chain) over n elements; the two chains are independent sums.
template <class A, class Body>
[[gnu::always_inline]] inline void sweep(int64_t n, const Body& body) {
  constexpr int64_t kStep = kLanes<A>;
  using First = std::integral_constant<int, 0>;
  using Second = std::integral_constant<int, 1>;
  int64_t i = 0;
  for (; i + 2 * kStep <= n; i += 2 * kStep) {
    body(All<A>{}, i, First{});
    body(All<A>{}, i + kStep, Second{});
  }
  if (i + kStep <= n) {
    body(All<A>{}, i, First{});
    i += kStep;
  }
  if (i < n) body(Some<A>{n - i}, i, Second{});
}

template <class A>
constexpr int64_t kRun = 64 * kLanes<A>;  // elements whose sums stay in lanes of A

// body(begin, length) over the runs of a plane.
template <class A, class Body>
[[gnu::always_inline]] inline void runs(int64_t plane, const Body& body) {
  for (int64_t begin = 0; begin < plane; begin += kRun<A>)
    body(begin, plane - begin < kRun<A> ? plane - begin : kRun<A>);
}

// K sums in lanes of A, moved to double before they grow long.
template <class A, int K>
struct Sums {
  typedef double Wide __attribute__((vector_size(kLanes<A> * 8)));
  Vec<A> lanes[K][2] = {};
  Wide wide[K] = {};
  int64_t held = 0;

  // Call after adding at most kRun elements to each sum.
  [[gnu::always_inline]] void hold(int64_t elements) {
    held += elements;
    if (held >= kRun<A>) spill();
  }
  [[gnu::always_inline]] void spill() {
    for (int k = 0; k < K; ++k) {
      for (const Vec<A>& lane : lanes[k]) wide[k] += __builtin_convertvector(lane, Wide);
      lanes[k][0] = lanes[k][1] = Vec<A>{};
    }
    held = 0;
  }
  double total(int k) {
    spill();
    double all = 0;
    for (int64_t i = 0; i < kLanes<A>; ++i) all += wide[k][i];
    return all;
  }
};

}  // namespace fastmeta::cpu::FM_ISA
