// Activations and their first two derivatives, as in torch. The CPU kernel evaluates them on
// vectors, a CUDA thread on scalars: `Math` provides the elementary functions of either.
#pragma once

#include <type_traits>

#include "fastmeta/platform.h"

namespace fastmeta {

enum class Activation : int { relu, tanh, elu, silu, sigmoid, gelu };
constexpr int kActivations = 6;

// For scalars; the CPU kernel has a vectorised version.
template <class T>
struct ScalarMath {
  using Scalar = T;
  using Value = T;
  static FM_HD T exp(T x) { return std::exp(x); }
  static FM_HD T expm1(T x) { return std::expm1(x); }
  static FM_HD T tanh(T x) { return std::tanh(x); }
  static FM_HD T erf(T x) { return std::erf(x); }
};

template <class V>
struct Curve {
  V value;
  V first;
  V second;  // derivative
};

template <Activation F, class Math>
FM_HD Curve<typename Math::Value> curve(typename Math::Value x) {
  using V = typename Math::Value;
  using T = typename Math::Scalar;
  const V zero = V{}, one = zero + 1;
  if constexpr (F == Activation::relu) {
    return {x <= 0 ? zero : x, x <= 0 ? zero : one, zero};
  } else if constexpr (F == Activation::tanh) {
    const V y = Math::tanh(x);
    const V first = one - y * y;
    return {y, first, -2 * y * first};
  } else if constexpr (F == Activation::elu) {
    const V below = Math::exp(x);
    return {x <= 0 ? Math::expm1(x) : x, x <= 0 ? below : one, x < 0 ? below : zero};
  } else if constexpr (F == Activation::silu) {
    const V s = one / (one + Math::exp(-x));
    const V rise = s * (one - s);
    return {x * s, s + x * rise, rise * (2 + x * (one - 2 * s))};
  } else if constexpr (F == Activation::sigmoid) {
    const V s = one / (one + Math::exp(-x));
    const V first = s * (one - s);
    return {s, first, first * (one - 2 * s)};
  } else {
    static_assert(F == Activation::gelu);
    // The normal distribution function and density.
    const V share = (one + Math::erf(x * static_cast<T>(0.70710678118654752440))) * T(0.5);
    const V density = Math::exp(x * x * T(-0.5)) * static_cast<T>(0.39894228040143267794);
    return {x * share, share + x * density, density * (2 - x * x)};
  }
}

// Calls body with the activation as a compile-time constant.
template <class Body>
FM_HD void with_activation(Activation f, const Body& body) {
  switch (f) {
    case Activation::relu:
      return body(std::integral_constant<Activation, Activation::relu>{});
    case Activation::tanh:
      return body(std::integral_constant<Activation, Activation::tanh>{});
    case Activation::elu:
      return body(std::integral_constant<Activation, Activation::elu>{});
    case Activation::silu:
      return body(std::integral_constant<Activation, Activation::silu>{});
    case Activation::sigmoid:
      return body(std::integral_constant<Activation, Activation::sigmoid>{});
    case Activation::gelu:
      return body(std::integral_constant<Activation, Activation::gelu>{});
  }
}

}  // namespace fastmeta
