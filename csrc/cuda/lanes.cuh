// Rows read and written 16 bytes at a time.
#pragma once

#include <type_traits>

#include "cuda/common.cuh"

namespace fastmeta::cuda {

struct alignas(16) Sixteen {
  uint32_t words[4];
};

template <class T>
constexpr int kLanes = 16 / sizeof(T);

template <class... P>
__device__ inline bool aligned16(const P*... p) {
  return (reinterpret_cast<uint64_t>(p) | ...) % 16 == 0;
}

// Whether a column begins at 16 bytes in every row.
template <class T>
__device__ inline bool rows_aligned(const T* column, int64_t stride) {
  return aligned16(column) && stride % kLanes<T> == 0;
}

// x[k] = p[k]: in loads of 16 bytes if kWhole (p is aligned, nothing is missing), else element by
// element, zero from `left` (which may be negative) on. Which element is whose, and with it every
// sum, does not depend on that. It is a template parameter, so that loops without branches can have
// several loads under way.
template <bool kWhole, class T, int kCount>
__device__ inline void load_lanes(const T* p, int64_t left, Acc<T> (&x)[kCount]) {
  if (kWhole) {
    T raw[kCount];
    Sixteen all[sizeof(raw) / 16];
    for (size_t k = 0; k < sizeof(raw) / 16; ++k) all[k] = reinterpret_cast<const Sixteen*>(p)[k];
    memcpy(raw, all, sizeof(raw));
    for (int k = 0; k < kCount; ++k) x[k] = widen(raw[k]);
  } else {
    for (int k = 0; k < kCount; ++k) x[k] = k < left ? widen(p[k]) : Acc<T>(0);
  }
}

// body(whole) with the flag as a type: its value may be a template argument.
template <class Body>
__device__ inline void as_type(bool whole, const Body& body) {
  whole ? body(std::true_type{}) : body(std::false_type{});
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

// The same from memory, to the bit: p[k] = from[k].
template <bool kWhole, class T>
__device__ inline void copy_lanes(const T* from, int64_t left, T* p) {
  if (kWhole)
    *reinterpret_cast<Sixteen*>(p) = *reinterpret_cast<const Sixteen*>(from);
  else
    for (int k = 0; k < kLanes<T> && k < left; ++k) p[k] = from[k];
}

}  // namespace fastmeta::cuda
