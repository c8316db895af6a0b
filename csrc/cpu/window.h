// A 2x2 max-pooling window: the values of its pixels in row order. Of equal values the first is the
// largest, as in torch.
#pragma once

#include "cpu/simd.h"

namespace fastmeta::cpu::FM_ISA {

template <class A>
struct Window {
  Vec<A> pixel[4];
};

template <class A>
inline Vec<A> largest(const Window<A>& y) {
  Vec<A> m = y.pixel[0];
  for (int k = 1; k < 4; ++k) m = y.pixel[k] > m ? y.pixel[k] : m;
  return m;
}

// Of `values`, the one where y is largest.
template <class A>
inline Vec<A> picked(const Window<A>& y, const Window<A>& values) {
  Vec<A> m = y.pixel[0], value = values.pixel[0];
  for (int k = 1; k < 4; ++k) {
    value = y.pixel[k] > m ? values.pixel[k] : value;
    m = y.pixel[k] > m ? y.pixel[k] : m;
  }
  return value;
}

// `value` at the pixel where y is largest, zero at the others.
template <class A>
inline Window<A> placed(const Window<A>& y, Vec<A> value) {
  const Vec<A> zero{};
  const auto& [a, b, c, d] = y.pixel;
  const Vec<A> top = b > a ? b : a, low = d > c ? d : c;
  const Vec<A> above = low > top ? zero : value, below = low > top ? value : zero;
  return {{b > a ? zero : above, b > a ? above : zero, d > c ? zero : below, d > c ? below : zero}};
}

}  // namespace fastmeta::cpu::FM_ISA
