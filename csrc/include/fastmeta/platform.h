// Types and qualifiers shared by host and device code. No torch, no CUDA runtime.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define FM_HD __host__ __device__ __forceinline__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#else
#define FM_HD inline
#endif

namespace fastmeta {

enum class DType : int { f32, f64, f16, bf16 };

// 16-bit storage. Arithmetic is always done in Acc<T>, never in these.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// The type in which values of a storage type are computed and accumulated.
template <class T>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};
template <class T>
using Acc = typename AccOf<T>::type;

FM_HD uint32_t float_bits(float x) {
  uint32_t u;
  memcpy(&u, &x, sizeof(u));
  return u;
}
FM_HD float bits_float(uint32_t u) {
  float x;
  memcpy(&x, &u, sizeof(x));
  return x;
}

FM_HD float widen(float x) {
  return x;
}
FM_HD double widen(double x) {
  return x;
}
FM_HD float widen(BFloat16 x) {
  return bits_float(static_cast<uint32_t>(x.bits) << 16);
}

FM_HD float widen(Half h) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(h.bits));
#else
  const uint32_t sign = static_cast<uint32_t>(h.bits & 0x8000u) << 16;
  const uint32_t exponent = (h.bits >> 10) & 0x1fu;
  const uint32_t mantissa = h.bits & 0x3ffu;
  if (exponent == 0x1f) return bits_float(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) return bits_float(sign | ((exponent + 112) << 23) | (mantissa << 13));
  // Zero or subnormal: the value is mantissa * 2^-24 exactly.
  const float magnitude = static_cast<float>(mantissa) * 5.9604644775390625e-8f;
  return sign ? -magnitude : magnitude;
#endif
}

// Rounds to nearest, ties to even; NaN stays NaN.
template <class T>
FM_HD T narrow(Acc<T> x);

template <>
FM_HD float narrow<float>(float x) {
  return x;
}
template <>
FM_HD double narrow<double>(double x) {
  return x;
}
template <>
FM_HD BFloat16 narrow<BFloat16>(float x) {
  const uint32_t u = float_bits(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((u >> 16) | 0x40u)};
  return {static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}
template <>
FM_HD Half narrow<Half>(float x) {
#if defined(__CUDA_ARCH__)
  return {__half_as_ushort(__float2half_rn(x))};
#else
  const uint32_t u = float_bits(x);
  const uint16_t sign = static_cast<uint16_t>((u >> 16) & 0x8000u);
  const uint32_t magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x47800000u) return {static_cast<uint16_t>(sign | 0x7c00u)};
  if (magnitude < 0x38800000u) {
    // Subnormal: adding 0.5 lets the FPU round to a multiple of 2^-24.
    const float rounded = bits_float(magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (float_bits(rounded) - 0x3f000000u))};
  }
  const uint32_t even = (magnitude >> 13) & 1u;
  return {static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + even) >> 13))};
#endif
}

// Calls body with a value of the storage type named by dtype.
template <class Body>
auto dispatch(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::f64:
      return body(double{});
    case DType::f16:
      return body(Half{});
    case DType::bf16:
      return body(BFloat16{});
    default:
      return body(float{});
  }
}

}  // namespace fastmeta
