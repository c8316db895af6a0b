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
  // See upper_tail_of.
  static constexpr float kTail[] = {0.755285130f,     -0.607896397f,  0.387137399f,
                                    -0.186526806f,    0.0603966048f,  -0.00751189197f,
                                    -0.00347983088f,  0.00156333708f, 0.000133510242f,
                                    -0.000157121555f, -1.67331537e-6f};
};
template <>
struct Format<double> {
  using Int = int64_t;
  static constexpr int kMantissa = 52, kBias = 1023, kTerms = 13;
  static constexpr double kRound = 0x1.8p52, kLn2High = 0x1.62e42fefap-1,
                          kLn2Low = 0x1.cf79abc9e3b3ap-40;
  static constexpr double kMinInput = -708.0, kMaxInput = 709.0;
  static constexpr double kTail[] = {
      0.755285130415751492,     -0.607896641971892108,   0.387137400742214911,
      -0.186521857959656485,    0.0603965748909181474,   -0.00754018896677456592,
      -0.00347969236705288127,  0.00163081845867498479,  0.000133344309457292991,
      -0.000231094947513424743, -1.90824660092410884e-6, 0.0000351447665965238474,
      7.16659635327638743e-7,   -5.92049581401760985e-6, -6.29838742375345508e-7,
      1.02236417738300669e-6,   2.72466066542411557e-7,  -1.56214731191312398e-7,
      -8.68696314767922965e-8,  1.43489842355880014e-8,  2.14296542960475644e-8,
      1.60960659255970366e-9,   -3.73141041385378192e-9, -9.18716465013849607e-10,
      3.40456401784078352e-10,  1.27774878828318559e-10};
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

// The integral of the normal density from x >= 0 on; `decay` is exp(-x^2 / 2). Their ratio times
// (x + 4) is a polynomial in (x - 4) / (x + 4), interpolated at Chebyshev nodes (relative errors of
// the result: 2e-7 in float, 5e-16 in double).
template <class T>
inline Vec<T> upper_tail_of(Vec<T> x, Vec<T> decay) {
  const Vec<T> inverse = 1 / (x + 4), s = (x - 4) * inverse;
  constexpr int kTerms = sizeof(Format<T>::kTail) / sizeof(T);
  Vec<T> sum = splat<T>(Format<T>::kTail[kTerms - 1]);
  for (int k = kTerms - 2; k >= 0; --k) sum = sum * s + Format<T>::kTail[k];
  return decay * (sum * inverse);
}

// For the activations.
template <class T>
struct VectorMath {
  using Scalar = T;
  using Value = Vec<T>;
  static Value exp(Value x) { return exp_of<T>(x); }
  static Value expm1(Value x) { return expm1_of<T>(x); }
  static Value tanh(Value x) { return tanh_of<T>(x); }
  static Value upper_tail(Value x, Value decay) { return upper_tail_of<T>(x, decay); }
};

}  // namespace mlp
}  // namespace fastmeta::cpu::FM_ISA
