// Vectors of the instruction set that the including file is compiled for, FM_VECTOR_BYTES wide.
#pragma once

#include "fastmeta/platform.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace fastmeta::cpu::FM_ISA {

template <class A>
struct VecOf {
  typedef A type __attribute__((vector_size(FM_VECTOR_BYTES)));
};
template <class A>
using Vec = typename VecOf<A>::type;
template <class A>
constexpr int64_t kLanes = FM_VECTOR_BYTES / static_cast<int64_t>(sizeof(A));

template <class A>
inline Vec<A> load(const A* p) {
  Vec<A> v;
  memcpy(&v, p, sizeof(v));
  return v;
}
template <class A>
inline void store(A* p, Vec<A> v) {
  memcpy(p, &v, sizeof(v));
}

#if FM_VECTOR_BYTES == 32
// A mask of the first n of eight or four lanes.
template <class A>
inline __m256i first_lanes(int64_t n) {
  alignas(32) static constexpr int64_t ones[8] = {-1, -1, -1, -1, 0, 0, 0, 0};
  const char* end = reinterpret_cast<const char*>(ones + 4);
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(end - n * sizeof(A)));
}
#endif

// The first n (0 to all) elements; the other lanes take `fill`.
template <class A>
inline Vec<A> load_some(const A* p, int64_t n, Vec<A> fill) {
  if (n == kLanes<A>) return load(p);
#if FM_VECTOR_BYTES == 64
  const uint32_t mask = (1u << n) - 1;
  if constexpr (sizeof(A) == 4)
    return reinterpret_cast<Vec<A>>(
        _mm512_mask_loadu_ps(reinterpret_cast<__m512>(fill), static_cast<__mmask16>(mask), p));
  else
    return reinterpret_cast<Vec<A>>(
        _mm512_mask_loadu_pd(reinterpret_cast<__m512d>(fill), static_cast<__mmask8>(mask), p));
#elif FM_VECTOR_BYTES == 32
  const __m256i mask = first_lanes<A>(n);
  if constexpr (sizeof(A) == 4)
    return reinterpret_cast<Vec<A>>(_mm256_blendv_ps(
        reinterpret_cast<__m256>(fill), _mm256_maskload_ps(p, mask), _mm256_castsi256_ps(mask)));
  else
    return reinterpret_cast<Vec<A>>(_mm256_blendv_pd(
        reinterpret_cast<__m256d>(fill), _mm256_maskload_pd(p, mask), _mm256_castsi256_pd(mask)));
#else
  A parts[kLanes<A>];
  store(parts, fill);
  for (int64_t i = 0; i < n; ++i) parts[i] = p[i];
  return load(parts);
#endif
}
template <class A>
inline void store_some(A* p, int64_t n, Vec<A> v) {
  if (n == kLanes<A>) return store(p, v);
#if FM_VECTOR_BYTES == 64
  const uint32_t mask = (1u << n) - 1;
  if constexpr (sizeof(A) == 4)
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>(mask), reinterpret_cast<__m512>(v));
  else
    _mm512_mask_storeu_pd(p, static_cast<__mmask8>(mask), reinterpret_cast<__m512d>(v));
#elif FM_VECTOR_BYTES == 32
  if constexpr (sizeof(A) == 4)
    _mm256_maskstore_ps(p, first_lanes<A>(n), reinterpret_cast<__m256>(v));
  else
    _mm256_maskstore_pd(p, first_lanes<A>(n), reinterpret_cast<__m256d>(v));
#else
  A parts[kLanes<A>];
  store(parts, v);
  for (int64_t i = 0; i < n; ++i) p[i] = parts[i];
#endif
}

inline Vec<float> load(const BFloat16* p) {
  constexpr int64_t n = kLanes<float>;
  typedef uint16_t Narrow __attribute__((vector_size(2 * n)));
  typedef uint32_t Wide __attribute__((vector_size(4 * n)));
  Narrow bits;
  memcpy(&bits, p, sizeof(bits));
  return reinterpret_cast<Vec<float>>(__builtin_convertvector(bits, Wide) << 16);
}

inline Vec<float> load(const Half* p) {
#if FM_VECTOR_BYTES == 64
  return reinterpret_cast<Vec<float>>(
      _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif FM_VECTOR_BYTES == 32
  return reinterpret_cast<Vec<float>>(
      _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  Vec<float> v;
  for (int64_t i = 0; i < kLanes<float>; ++i) v[i] = widen(p[i]);
  return v;
#endif
}

inline void store(BFloat16* p, Vec<float> v) {
  for (int64_t i = 0; i < kLanes<float>; ++i) p[i] = narrow<BFloat16>(v[i]);
}

inline void store(Half* p, Vec<float> v) {
#if FM_VECTOR_BYTES == 64
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(reinterpret_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT));
#elif FM_VECTOR_BYTES == 32
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(reinterpret_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT));
#else
  for (int64_t i = 0; i < kLanes<float>; ++i) p[i] = narrow<Half>(v[i]);
#endif
}

template <class A>
inline Vec<A> splat(A x) {
  return x - Vec<A>{};  // optimised away, unlike x + 0, which differs from x for -0
}

// The square root of every lane; V is a Vec.
template <class V>
inline V square_root(V v) {
#if FM_VECTOR_BYTES == 64
  if constexpr (sizeof(v[0]) == 4)
    return reinterpret_cast<V>(_mm512_sqrt_ps(reinterpret_cast<__m512>(v)));
  else
    return reinterpret_cast<V>(_mm512_sqrt_pd(reinterpret_cast<__m512d>(v)));
#elif FM_VECTOR_BYTES == 32
  if constexpr (sizeof(v[0]) == 4)
    return reinterpret_cast<V>(_mm256_sqrt_ps(reinterpret_cast<__m256>(v)));
  else
    return reinterpret_cast<V>(_mm256_sqrt_pd(reinterpret_cast<__m256d>(v)));
#else
  constexpr size_t lanes = sizeof(V) / sizeof(v[0]);
  for (size_t i = 0; i < lanes; ++i) v[i] = std::sqrt(v[i]);
  return v;
#endif
}

template <class A>
inline double sum(Vec<A> v) {
  double total = 0;
  for (int64_t i = 0; i < kLanes<A>; ++i) total += static_cast<double>(v[i]);
  return total;
}

}  // namespace fastmeta::cpu::FM_ISA
