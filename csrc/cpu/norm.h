// What the norm kernels share: the constants of a channel, the way back through ReLU and pooling,
// and the loop over channels.
#pragma once

#include <vector>

#include "cpu/planes.h"
#include "cpu/pool.h"
#include "fastmeta/norm.h"

namespace fastmeta::cpu::FM_ISA {

// One channel: its planes and the constants of y = slope (x - mean) + bias.
template <class T>
struct Channel {
  const NormInput& in;
  int64_t c;
  int64_t plane;   // elements of a plane of x
  int64_t pooled;  // and of z
  double m;
  double weight;
  Vec<T> bias;
  double r = 0;
  Vec<T> mean = {};
  Vec<T> slope = {};

  Channel(const NormInput& in, int64_t c)
      : in(in),
        c(c),
        plane(in.h * in.w),
        pooled(in.pool ? in.h / 2 * (in.w / 2) : plane),
        m(static_cast<double>(in.n * plane)),
        weight(static_cast<const T*>(in.weight)[c]),
        bias(splat(static_cast<const T*>(in.bias)[c])) {}

  void set(T mean_value, T var) {
    mean = splat(mean_value);
    r = 1 / std::sqrt(static_cast<double>(var) + in.eps);
    slope = splat(static_cast<T>(weight * r));
  }

  const T* x(int64_t n) const { return at(static_cast<const T*>(in.x), n); }
  template <class P>
  P* at(P* x_like, int64_t n) const {
    return x_like + (n * in.c + c) * plane;
  }
  template <class P>
  P* at_pooled(P* z_like, int64_t n) const {
    return z_like + (n * in.c + c) * pooled;
  }
  Vec<T> y(Vec<T> x) const { return slope * (x - mean) + bias; }
  Corners<T> y(const T* x, int64_t windows) const {
    const Corners<T> v = load_corners(x, in.w, windows);
    return {{y(v.top.even), y(v.top.odd)}, {y(v.bottom.even), y(v.bottom.odd)}};
  }
};

template <class T>
constexpr Vec<T> kZero = {};

// NaN stays NaN.
template <class T>
Vec<T> where_positive(Vec<T> y, Vec<T> value) {
  return y <= kZero<T> ? kZero<T> : value;
}

// The gradient of y from that of z. With pooling, a plane of it is laid out in scratch first.
template <class T, bool kPool>
struct Routed {
  const Channel<T>& ch;
  const void* dz;
  T* scratch;

  const T* plane(int64_t n) const {
    const T* from_z = ch.at_pooled(static_cast<const T*>(dz), n);
    if constexpr (!kPool) return from_z;
    const T* x = ch.x(n);
    if (ch.in.h % 2 || ch.in.w % 2) memset(scratch, 0, sizeof(T) * ch.plane);
    windows<T>(ch.in.h, ch.in.w, [&](int64_t count, int64_t at, int64_t z) {
      const Corners<T> y = ch.y(x + at, count);
      const Vec<T> value = load_some(from_z + z, count, kZero<T>);
      const Corners<T> dy = placed(y, where_positive<T>(largest(y), value));
      store_columns(scratch + at, count, dy.top);
      store_columns(scratch + at + ch.in.w, count, dy.bottom);
    });
    return scratch;
  }
  Vec<T> operator()(Vec<T> d, Vec<T> loaded) const {
    return kPool ? loaded : where_positive<T>(ch.slope * d + ch.bias, loaded);
  }
};

// task(channel, scratch) for every channel; a plane of scratch a thread.
template <class Task>
void each_channel(const NormInput& in, const Parallel& parallel, const Task& task) {
  constexpr int64_t kWorthwhile = 16384;  // elements
  const int64_t elements = in.n * in.h * in.w;
  const int64_t grain = elements < kWorthwhile ? kWorthwhile / (elements + 1) + 1 : 1;
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    parallel(in.c, grain, [&](int64_t begin, int64_t end) {
      std::vector<T> scratch(in.pool ? in.h * in.w : 0);
      for (int64_t c = begin; c < end; ++c) {
        Channel<T> channel(in, c);
        task(channel, scratch.data());
      }
    });
  };
  if (in.dtype == DType::f64)
    run(double{});
  else
    run(float{});
}

// The kernel of all channels from name<T, kPool>(args, channel, scratch) of one.
#define FM_NORM(name, Args)                                             \
  void norm_##name(const Args& args, const Parallel& parallel) {        \
    each_channel(args.in, parallel, [&](auto& channel, auto* scratch) { \
      using T = std::remove_pointer_t<decltype(scratch)>;               \
      args.in.pool ? name<T, true>(args, channel, scratch)              \
                   : name<T, false>(args, channel, scratch);            \
    });                                                                 \
  }

}  // namespace fastmeta::cpu::FM_ISA
