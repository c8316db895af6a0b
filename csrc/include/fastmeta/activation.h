// Activations and their first two derivatives, as in torch. The CPU kernel evaluates them on
// vectors, a CUDA thread on scalars: `Math` provides the elementary functions of either.
#pragma once

#include <type_traits>

#include "fastmeta/platform.h"

namespace fastmeta {

enum class Activation : int { relu, tanh, elu, silu, sigmoid, gelu, gelu_tanh };
constexpr int kMlpActivations = 6;  // mlp_step has those before gelu_tanh

// For scalars; the CPU kernel has a vectorised version.
template <class T>
struct ScalarMath {
  using Scalar = T;
  using Value = T;
  static FM_HD T exp(T x) { return std::exp(x); }
  static FM_HD T expm1(T x) { return std::expm1(x); }
  static FM_HD T tanh(T x) { return std::tanh(x); }
  // The integral of the normal density from x >= 0 on; `decay` is exp(-x^2 / 2).
  static FM_HD T upper_tail(T x, T) { return std::erfc(x * T(0.70710678118654752440)) * T(0.5); }
};

template <class V>
struct Curve {
  V value;
  V first;
  V second;  // derivative
};

// e^-x for x >= 0, exactly 0 where it nearly underflows: products with large x are 0, too.
template <class Math>
FM_HD typename Math::Value decay(typename Math::Value x) {
  using V = typename Math::Value;
  using T = typename Math::Scalar;
  const V limit = V{} + (sizeof(T) == 4 ? T(87) : T(708));
  return x > limit ? V{} : Math::exp(-x);
}

template <class Math>
FM_HD typename Math::Value sigmoid(typename Math::Value x) {
  using V = typename Math::Value;
  const V one = V{} + 1, e = decay<Math>(x < 0 ? -x : x), inverse = one / (one + e);
  return x < 0 ? e * inverse : inverse;
}

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
    const V s = sigmoid<Math>(x);
    const V rise = s * (one - s);
    return {x * s, s + x * rise, rise * (2 + x * (one - 2 * s))};
  } else if constexpr (F == Activation::sigmoid) {
    const V s = sigmoid<Math>(x);
    const V first = s * (one - s);
    return {s, first, first * (one - 2 * s)};
  } else if constexpr (F == Activation::gelu) {
    // The normal distribution function and density, which is 0 from 40 on.
    const V size = x < 0 ? -x : x, near = size > 40 ? zero + 40 : size;
    const V e = decay<Math>(near * near * T(0.5)), tail = Math::upper_tail(near, e);
    const V share = x < 0 ? tail : one - tail;
    const V density = e * static_cast<T>(0.39894228040143267794);
    return {x * share, share + x * density, density * (2 - near * near)};
  } else {
    static_assert(F == Activation::gelu_tanh);
    // (1 + tanh(v / 2)) / 2 = sigmoid(v), with v = 2 sqrt(2 / pi) (x + 0.044715 x^3).
    constexpr T kLinear = static_cast<T>(1.5957691216057307117);
    constexpr T kCubic = static_cast<T>(0.044715);
    const V near = x < -40 ? zero - 40 : x > 40 ? zero + 40 : x, square = near * near;
    const V slope = kLinear * (one + 3 * kCubic * square), bend = 6 * kLinear * kCubic * near;
    const V s = sigmoid<Math>(kLinear * near * (one + kCubic * square));
    const V rise = s * (one - s), first = rise * slope;
    return {x * s, s + x * first, 2 * first + x * rise * ((one - 2 * s) * slope * slope + bend)};
  }
}

// Calls body with an activation of mlp_step as a compile-time constant.
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
    default:
      return body(std::integral_constant<Activation, Activation::gelu>{});
  }
}

// activation: gelu, gelu_tanh or silu of every element, and its derivatives f' and f''.
//
//   forward    f(x)
//   backward   f'(x) g; with a direction x. in place of g the tangent of f(x)
//   second     the tangents of f(x) and of f'(x) g along x. and, if given, g.:
//              f'(x) x.  and  f''(x) g x. + f'(x) g.
struct ActivationForwardArgs {
  DType dtype;
  Activation activation;
  int64_t count;
  const void* x;
  void* y;
};

struct ActivationBackwardArgs {
  DType dtype;
  Activation activation;
  int64_t count;
  const void* x;
  const void* dout;
  void* dx;
};

struct ActivationSecondArgs {
  DType dtype;
  Activation activation;
  int64_t count;
  const void* x;
  const void* dout;
  const void* tdout;  // or null: zero
  const void* tx;
  void* tout;  // f'(x) x., or null
  void* dx;
};

// Calls body with an activation of the elementwise ops as a compile-time constant.
template <class Body>
FM_HD void with_smooth_activation(Activation f, const Body& body) {
  switch (f) {
    case Activation::silu:
      return body(std::integral_constant<Activation, Activation::silu>{});
    case Activation::gelu_tanh:
      return body(std::integral_constant<Activation, Activation::gelu_tanh>{});
    default:
      return body(std::integral_constant<Activation, Activation::gelu>{});
  }
}

namespace cuda {
int activation_forward(const ActivationForwardArgs& args, void* stream);
int activation_backward(const ActivationBackwardArgs& args, void* stream);
int activation_second(const ActivationSecondArgs& args, void* stream);
}  // namespace cuda

}  // namespace fastmeta
