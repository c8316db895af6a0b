// Vectorised exponentials.
#pragma once

#include "cpu/simd.h"
#include "fastmeta/activation.h"

namespace fastmeta::cpu::FM_ISA {
namespace mlp {

template <class T>
struct Format;
template <>
struct Format<float> {
  using Int = int32_t;
  static constexpr int kMantissa = 23, kBias = 127, kTerms = 7;
  // n * kLn2High is exact for every exponent n.
  static constexpr float kRound = 0x1.8p23f, kLn2High = 0x1.62e4p-1f, kLn2Low = 0x1.7f7d1cp-20f;
  static constexpr float kMinInput = -87.0f, kMaxInput = 88.0f;
};
template <>
struct Format<double> {
  using Int = int64_t;
  static constexpr int kMantissa = 52, kBias = 1023, kTerms = 13;
  static constexpr double kRound = 0x1.8p52, kLn2High = 0x1.62e42fefap-1,
                          kLn2Low = 0x1.cf79abc9e3b3ap-40;
  static constexpr double kMinInput = -708.0, kMaxInput = 709.0;
};
template <class T>
struct IntVecOf {
  typedef typename Format<T>::Int type __attribute__((vector_size(FM_VECTOR_BYTES)));
};

// e^x = power (1 + rest): power = 2^n, rest = e^r - 1 with |r| <= ln(2) / 2.
template <class T>
struct Exponential {
  Vec<T> power;
  Vec<T> rest;
};

// x is clamped so that neither power nor its inverse overflows; NaN stays NaN.
template <class T>
inline Exponential<T> exponential(Vec<T> x) {
  using F = Format<T>;
  using Ints = typename IntVecOf<T>::type;
  x = x < splat<T>(F::kMinInput) ? splat<T>(F::kMinInput) : x;
  x = x > splat<T>(F::kMaxInput) ? splat<T>(F::kMaxInput) : x;
  // Adding kRound leaves round(x / ln 2) in the lowest bits.
  const Vec<T> shifted = x * static_cast<T>(1.4426950408889634) + F::kRound;
  const Vec<T> n = shifted - F::kRound;
  const Vec<T> r = (x - n * F::kLn2High) - n * F::kLn2Low;
  Vec<T> sum = Vec<T>{};  // of r^(k-2) / k!, k = kTerms .. 2
  T inverse[F::kTerms + 1] = {1};
  for (int k = 1; k <= F::kTerms; ++k) inverse[k] = inverse[k - 1] / static_cast<T>(k);
  for (int k = F::kTerms; k >= 2; --k) sum = sum * r + inverse[k];
  const Ints bits = (reinterpret_cast<Ints>(shifted) << F::kMantissa) +
                    (static_cast<typename F::Int>(F::kBias) << F::kMantissa);
  return {reinterpret_cast<Vec<T>>(bits), sum * r * r + r};
}

template <class T>
inline Vec<T> exp_of(Vec<T> x) {
  const Exponential<T> e = exponential<T>(x);
  return e.power * e.rest + e.power;
}

// e^x - 1, accurate near 0.
template <class T>
inline Vec<T> expm1_of(Vec<T> x) {
  const Exponential<T> e = exponential<T>(x);
  return e.power * e.rest + (e.power - 1);
}

template <class T>
inline Vec<T> tanh_of(Vec<T> x) {
  const Vec<T> size = x < 0 ? -x : x;
  // Beyond 20 tanh rounds to 1, and e^2x would eventually overflow.
  const Vec<T> e = expm1_of<T>(2 * (size > 20 ? splat<T>(20) : size));
  const Vec<T> value = e / (e + 2);
  return x < 0 ? -value : value;
}

// For the activations.
template <class T>
struct VectorMath {
  using Scalar = T;
  using Value = Vec<T>;
  static Value exp(Value x) { return exp_of<T>(x); }
  static Value expm1(Value x) { return expm1_of<T>(x); }
  static Value tanh(Value x) { return tanh_of<T>(x); }
  static Value erf(Value x) {
    for (int64_t i = 0; i < kLanes<T>; ++i) x[i] = std::erf(x[i]);
    return x;
  }
};

}  // namespace mlp
}  // namespace fastmeta::cpu::FM_ISA
