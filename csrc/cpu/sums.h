// Sums over rows: in several vectors, then in double.
#pragma once

#include "cpu/simd.h"

namespace fastmeta::cpu::FM_ISA {

constexpr int64_t kUnroll = 4;  // independent sums hide the latency of multiply-adds

template <class A, int64_t kChains = kUnroll>
struct Sums {
  Vec<A> lanes[kChains] = {};
  double tail = 0;
  double total() const {
    double all = tail;
    for (const Vec<A>& lane : lanes) all += sum<A>(lane);
    return all;
  }
};

// (<a, b>, |a|^2, |b|^2) of n elements.
template <class T>
void row_sums(const T* a, const T* b, int64_t n, double* out) {
  using A = Acc<T>;
  Sums<A> dot, aa, bb;
  constexpr int64_t kStep = kUnroll * kLanes<A>;
  const int64_t whole = n / kStep * kStep;
  for (int64_t p = 0; p < whole; p += kStep)
    for (int64_t k = 0; k < kUnroll; ++k) {
      const Vec<A> x = load(a + p + k * kLanes<A>);
      const Vec<A> y = load(b + p + k * kLanes<A>);
      dot.lanes[k] += x * y;
      aa.lanes[k] += x * x;
      bb.lanes[k] += y * y;
    }
  for (int64_t p = whole; p < n; ++p) {
    const double x = widen(a[p]), y = widen(b[p]);
    dot.tail += x * y;
    aa.tail += x * x;
    bb.tail += y * y;
  }
  out[0] = dot.total();
  out[1] = aa.total();
  out[2] = bb.total();
}

}  // namespace fastmeta::cpu::FM_ISA
