// 16-byte loads and stores of rows.
#pragma once

#include <type_traits>

#include "cuda/common.cuh"

namespace fastmeta::cuda {

struct alignas(16) Bytes16 {
  uint32_t words[4];
};

template <class T>
constexpr int kLanes = 16 / sizeof(T);

template <class... P>
__device__ inline bool aligned16(const P*... p) {
  return (reinterpret_cast<uint64_t>(p) | ...) % 16 == 0;
}

// Whether a column is aligned to 16 bytes in every row.
template <class T>
__device__ inline bool rows_aligned(const T* column, int64_t stride) {
  return aligned16(column) && stride % kLanes<T> == 0;
}

// x[k] = p[k]: by 16-byte loads if kWhole (p is aligned and no element is missing), else element by
// element, with zeros from `left` (which may be negative) on. Elements are assigned to threads the
// same way in both cases, so sums do not depend on it. kWhole is a template parameter so that loops
// without branches can have several loads in flight.
template <bool kWhole, class T, int kCount>
__device__ inline void load_lanes(const T* p, int64_t left, Acc<T> (&x)[kCount]) {
  if (kWhole) {
    T raw[kCount];
    Bytes16 all[sizeof(raw) / 16];
    for (size_t k = 0; k < sizeof(raw) / 16; ++k) all[k] = reinterpret_cast<const Bytes16*>(p)[k];
    memcpy(raw, all, sizeof(raw));
    for (int k = 0; k < kCount; ++k) x[k] = widen(raw[k]);
  } else {
    for (int k = 0; k < kCount; ++k) x[k] = k < left ? widen(p[k]) : Acc<T>(0);
  }
}

// Calls body with the flag as a type, so that it can be a template argument.
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
    Bytes16 all;
    memcpy(&all, raw, sizeof(all));
    *reinterpret_cast<Bytes16*>(p) = all;
  } else {
    for (int k = 0; k < kLanes<T> && k < left; ++k) p[k] = narrow<T>(x[k]);
  }
}

// p[k] = from[k], bit by bit.
template <bool kWhole, class T>
__device__ inline void copy_lanes(const T* from, int64_t left, T* p) {
  if (kWhole)
    *reinterpret_cast<Bytes16*>(p) = *reinterpret_cast<const Bytes16*>(from);
  else
    for (int k = 0; k < kLanes<T> && k < left; ++k) p[k] = from[k];
}

// The elements of a thread in a tensor of `count`, 16 bytes from `first` on; `left` of them exist.
// `block`: number of the block in the tensor.
template <class T>
struct ElementLanes {
  using A = Acc<T>;
  int64_t first, left;

  __device__ ElementLanes(int64_t block, int64_t count)
      : first((block * kThreads + threadIdx.x) * kLanes<T>), left(count - first) {}
  __device__ void read(const void* from, A (&x)[kLanes<T>]) const {
    const T* p = static_cast<const T*>(from) + first;
    as_type(left >= kLanes<T> && aligned16(p),
            [&](auto whole) { load_lanes<decltype(whole)::value>(p, left, x); });
  }
  __device__ void write(void* to, const A (&x)[kLanes<T>]) const {
    T* p = static_cast<T*>(to) + first;
    store_lanes(p, left, aligned16(p), x);
  }
};

}  // namespace fastmeta::cuda
