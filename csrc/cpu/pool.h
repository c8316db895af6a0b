// 2x2 max-pooling of one plane (h, w), stride 2, odd edges dropped; of equal values the first in
// row order is the largest, as in torch.
#pragma once

#include <utility>

#include "cpu/simd.h"

namespace fastmeta::cpu::FM_ISA {

// Even and odd elements of a stretch of a row.
template <class A>
struct Columns {
  Vec<A> even;
  Vec<A> odd;
};

template <class A, size_t... i>
inline Columns<A> split(Vec<A> a, Vec<A> b, std::index_sequence<i...>) {
  return {__builtin_shufflevector(a, b, (2 * i)...), __builtin_shufflevector(a, b, (2 * i + 1)...)};
}
template <class A, size_t... i>
inline Columns<A> join(Vec<A> even, Vec<A> odd, std::index_sequence<i...>) {
  constexpr size_t n = sizeof...(i);
  return {__builtin_shufflevector(even, odd, (i / 2 + i % 2 * n)...),
          __builtin_shufflevector(even, odd, (n / 2 + i / 2 + i % 2 * n)...)};
}

// The n windows of a vector: their columns in one row.
template <class A>
inline Columns<A> load_columns(const A* p, int64_t n) {
  constexpr int64_t kL = kLanes<A>;
  const Vec<A> zero{};
  const int64_t first = 2 * n < kL ? 2 * n : kL;
  const Vec<A> a = load_some(p, first, zero);
  const Vec<A> b = 2 * n > kL ? load_some(p + kL, 2 * n - kL, zero) : zero;
  return split<A>(a, b, std::make_index_sequence<kL>{});
}
template <class A>
inline void store_columns(A* p, int64_t n, Columns<A> c) {
  constexpr int64_t kL = kLanes<A>;
  const Columns<A> row = join<A>(c.even, c.odd, std::make_index_sequence<kL>{});
  store_some(p, 2 * n < kL ? 2 * n : kL, row.even);
  if (2 * n > kL) store_some(p + kL, 2 * n - kL, row.odd);
}

// body(n, top, out): n windows, whose upper row begins at top, go to out.
template <class A, class Body>
inline void windows(int64_t h, int64_t w, const Body& body) {
  for (int64_t row = 0; row < h / 2; ++row)
    for (int64_t i = 0; i < w / 2; i += kLanes<A>)
      body(w / 2 - i < kLanes<A> ? w / 2 - i : kLanes<A>, 2 * row * w + 2 * i, row * (w / 2) + i);
}

// Values of the four corners of each window in row order, and which is the largest.
template <class A>
struct Corners {
  Columns<A> top;
  Columns<A> bottom;
};
template <class A>
inline Corners<A> load_corners(const A* p, int64_t w, int64_t n) {
  return {load_columns(p, n), load_columns(p + w, n)};
}

template <class A>
inline Vec<A> largest(const Corners<A>& y) {
  Vec<A> m = y.top.even;
  for (Vec<A> v : {y.top.odd, y.bottom.even, y.bottom.odd}) m = v > m ? v : m;
  return m;
}

// Of `values`, the one where y is largest.
template <class A>
inline Vec<A> picked(const Corners<A>& y, const Corners<A>& values) {
  Vec<A> m = y.top.even, picked = values.top.even;
  const Vec<A> others[3][2] = {{y.top.odd, values.top.odd},
                               {y.bottom.even, values.bottom.even},
                               {y.bottom.odd, values.bottom.odd}};
  for (const auto& [v, value] : others) {
    picked = v > m ? value : picked;
    m = v > m ? v : m;
  }
  return picked;
}

// `value` at the corner where y is largest, zero at the others.
template <class A>
inline Corners<A> placed(const Corners<A>& y, Vec<A> value) {
  const Vec<A> zero{};
  const Vec<A> top = y.top.odd > y.top.even ? y.top.odd : y.top.even;
  const Vec<A> low = y.bottom.odd > y.bottom.even ? y.bottom.odd : y.bottom.even;
  const Vec<A> above = low > top ? zero : value;
  const Vec<A> below = low > top ? value : zero;
  const auto right_above = y.top.odd > y.top.even;
  const auto right_below = y.bottom.odd > y.bottom.even;
  return {{right_above ? zero : above, right_above ? above : zero},
          {right_below ? zero : below, right_below ? below : zero}};
}

}  // namespace fastmeta::cpu::FM_ISA
