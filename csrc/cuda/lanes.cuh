// Rows read and written 16 bytes at a time.
#pragma once

#include "cuda/common.cuh"

namespace fastmeta::cuda {

struct alignas(16) Sixteen {
  uint32_t words[4];
};

template <class T>
constexpr int kLanes = 16 / sizeof(T);

__device__ inline bool aligned16(const void* p) {
  return reinterpret_cast<uint64_t>(p) % 16 == 0;
}

// Whether a column begins at 16 bytes in every row.
template <class T>
__device__ inline bool rows_aligned(const T* column, int64_t stride) {
  return aligned16(column) && stride % kLanes<T> == 0;
}

// x[k] = p[k]: in one load if kWhole (p is aligned, nothing is missing), else element by element,
// zero from `left` (which may be negative) on. Which element is whose, and with it every sum, does
// not depend on that. It is a template parameter, so that loops without branches can have several
// loads under way.
template <bool kWhole, class T>
__device__ inline void load_lanes(const T* p, int64_t left, Acc<T> (&x)[kLanes<T>]) {
  if (kWhole) {
    const Sixteen all = *reinterpret_cast<const Sixteen*>(p);
    T raw[kLanes<T>];
    memcpy(raw, &all, sizeof(all));
    for (int k = 0; k < kLanes<T>; ++k) x[k] = widen(raw[k]);
  } else {
    for (int k = 0; k < kLanes<T>; ++k) x[k] = k < left ? widen(p[k]) : Acc<T>(0);
  }
}

// p[k] = x[k], up to `left`.
template <class T>
__device__ inline void store_lanes(T* p, int64_t left, bool aligned, const Acc<T> (&x)[kLanes<T>]) {
  if (aligned && left >= kLanes<T>) {
    T raw[kLanes<T>];
    for (int k = 0; k < kLanes<T>; ++k) raw[k] = narrow<T>(x[k]);
    Sixteen all;
    memcpy(&all, raw, sizeof(all));
    *reinterpret_cast<Sixteen*>(p) = all;
  } else {
    for (int k = 0; k < kLanes<T> && k < left; ++k) p[k] = narrow<T>(x[k]);
  }
}

}  // namespace fastmeta::cuda
