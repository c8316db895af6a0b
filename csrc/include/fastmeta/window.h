// ReLU and 2x2 max-pooling, for scalars and vectors (V). A window holds its pixels in row order; of
// equal values the first is the maximum, as in torch.
#pragma once

#include "fastmeta/platform.h"

namespace fastmeta {

// NaN stays NaN.
template <class V>
FM_HD V where_positive(V y, V value) {
  return y <= V{} ? V{} : value;
}

template <class V>
struct Window {
  V pixel[4];
};

template <class V>
FM_HD V largest(const Window<V>& y) {
  V m = y.pixel[0];
  for (int k = 1; k < 4; ++k) m = y.pixel[k] > m ? y.pixel[k] : m;
  return m;
}

// The element of `values` where y is largest.
template <class V>
FM_HD V picked(const Window<V>& y, const Window<V>& values) {
  V m = y.pixel[0], value = values.pixel[0];
  for (int k = 1; k < 4; ++k) {
    value = y.pixel[k] > m ? values.pixel[k] : value;
    m = y.pixel[k] > m ? y.pixel[k] : m;
  }
  return value;
}

// `value` at the pixel where y is largest, zero at the others.
template <class V>
FM_HD Window<V> placed(const Window<V>& y, V value) {
  const V zero{};
  const auto& [a, b, c, d] = y.pixel;
  const V top = b > a ? b : a, low = d > c ? d : c;
  const V above = low > top ? zero : value, below = low > top ? value : zero;
  return {{b > a ? zero : above, b > a ? above : zero, d > c ? zero : below, d > c ? below : zero}};
}

}  // namespace fastmeta
