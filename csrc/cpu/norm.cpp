#include <vector>

#include "cpu/kernels.h"
#include "cpu/planes.h"
#include "cpu/pool.h"

namespace fastmeta::cpu::FM_ISA {
namespace {

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

template <class T>
void moments(const NormForwardArgs& args, Channel<T>& ch) {
  // Sums of differences to a value of the channel: rounding grows with its spread, not its mean.
  const Vec<T> anchor = splat(*ch.x(0));
  Sums<T, 1> first, second;
  for (int64_t n = 0; n < ch.in.n; ++n)
    runs<T>(ch.plane, [&](int64_t begin, int64_t length) {
      const T* x = ch.x(n) + begin;
      sweep<T>(length, [&](auto lanes, int64_t i, auto k) {
        first.lanes[0][k] += lanes.load(x + i, anchor) - anchor;
      });
      first.hold(length);
    });
  const T mean = static_cast<T>(static_cast<double>(*ch.x(0)) + first.total(0) / ch.m);
  const Vec<T> centre = splat(mean);
  for (int64_t n = 0; n < ch.in.n; ++n)
    runs<T>(ch.plane, [&](int64_t begin, int64_t length) {
      const T* x = ch.x(n) + begin;
      sweep<T>(length, [&](auto lanes, int64_t i, auto k) {
        const Vec<T> d = lanes.load(x + i, centre) - centre;
        second.lanes[0][k] += d * d;
      });
      second.hold(length);
    });
  const T var = static_cast<T>(second.total(0) / ch.m);
  static_cast<T*>(args.mean)[ch.c] = mean;
  static_cast<T*>(args.var)[ch.c] = var;
  ch.set(mean, var);
}

template <class T, bool kPool>
void forward(const NormForwardArgs& args, Channel<T>& ch, T*) {
  moments(args, ch);
  for (int64_t n = 0; n < ch.in.n; ++n) {
    const T* x = ch.x(n);
    T* z = ch.at_pooled(static_cast<T*>(args.z), n);
    if constexpr (kPool)
      windows<T>(ch.in.h, ch.in.w, [&](int64_t count, int64_t from, int64_t to) {
        const Vec<T> y = largest(ch.y(x + from, count));
        store_some(z + to, count, where_positive<T>(y, y));
      });
    else
      sweep<T>(ch.plane, [&](auto lanes, int64_t i, auto) {
        const Vec<T> y = ch.y(lanes.load(x + i, kZero<T>));
        lanes.store(z + i, where_positive<T>(y, y));
      });
  }
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

template <class T, bool kPool>
void backward(const NormBackwardArgs& args, Channel<T>& ch, T* scratch) {
  ch.set(static_cast<const T*>(args.mean)[ch.c], static_cast<const T*>(args.var)[ch.c]);
  const Routed<T, kPool> routed{ch, args.dz, scratch};
  Sums<T, 2> sums;
  for (int64_t n = 0; n < ch.in.n; ++n) {
    const T* dy_plane = routed.plane(n);
    runs<T>(ch.plane, [&](int64_t begin, int64_t length) {
      const T *x = ch.x(n) + begin, *dy = dy_plane + begin;
      sweep<T>(length, [&](auto lanes, int64_t i, auto k) {
        const Vec<T> d = lanes.load(x + i, ch.mean) - ch.mean;
        const Vec<T> g = routed(d, lanes.load(dy + i, kZero<T>));
        sums.lanes[0][k] += g;
        sums.lanes[1][k] += g * d;
      });
      sums.hold(length);
    });
  }
  const NormBackwardCoef k =
      norm_backward_coef(ch.m, ch.r, ch.weight, sums.total(0), sums.total(1));
  const Vec<T> k_dy = splat<T>(k.dy), k_d = splat<T>(k.d), k_one = splat<T>(k.one);
  for (int64_t n = 0; n < ch.in.n; ++n) {
    const T *x = ch.x(n), *dy = routed.plane(n);
    T* dx = ch.at(static_cast<T*>(args.dx), n);
    sweep<T>(ch.plane, [&](auto lanes, int64_t i, auto) {
      const Vec<T> d = lanes.load(x + i, ch.mean) - ch.mean;
      lanes.store(dx + i, k_dy * routed(d, lanes.load(dy + i, kZero<T>)) + (k_d * d + k_one));
    });
  }
  static_cast<T*>(args.dweight)[ch.c] = static_cast<T>(k.dweight);
  static_cast<T*>(args.dbias)[ch.c] = static_cast<T>(sums.total(0));
}

template <class T, bool kPool>
NormSums second_sums(const NormSecondArgs& args, const Channel<T>& ch,
                     const Routed<T, kPool>& routed) {
  Sums<T, 5> sums;
  for (int64_t n = 0; n < ch.in.n; ++n) {
    const T* u_plane = ch.at(static_cast<const T*>(args.u), n);
    const T* dy_plane = args.dz ? routed.plane(n) : nullptr;
    runs<T>(ch.plane, [&](int64_t begin, int64_t length) {
      const T *x = ch.x(n) + begin, *u_run = u_plane + begin;
      sweep<T>(length, [&](auto lanes, int64_t i, auto k) {
        const Vec<T> d = lanes.load(x + i, ch.mean) - ch.mean;
        const Vec<T> u = lanes.load(u_run + i, kZero<T>);
        sums.lanes[0][k] += u;
        sums.lanes[1][k] += u * d;
        if (!args.dz) return;
        const Vec<T> dy = routed(d, lanes.load(dy_plane + begin + i, kZero<T>));
        sums.lanes[2][k] += dy;
        sums.lanes[3][k] += dy * d;
        sums.lanes[4][k] += u * dy;
      });
      sums.hold(length);
    });
  }
  return {sums.total(0), sums.total(1), sums.total(2), sums.total(3), sums.total(4)};
}

// The change of z: a value for each element of x, kept where y is positive and largest.
template <class T, bool kPool>
void change_of_z(const NormSecondArgs& args, const Channel<T>& ch, const NormSecondCoef& k,
                 int64_t n, T* scratch) {
  const Vec<T> k_u = splat<T>(k.z_u), k_d = splat<T>(k.z_d), k_one = splat<T>(k.z_one);
  const T *x = ch.x(n), *u = ch.at(static_cast<const T*>(args.u), n);
  T* out = ch.at_pooled(static_cast<T*>(args.out_z), n);
  T* change = kPool ? scratch : out;
  sweep<T>(ch.plane, [&](auto lanes, int64_t i, auto) {
    const Vec<T> d = lanes.load(x + i, ch.mean) - ch.mean;
    const Vec<T> v = k_u * lanes.load(u + i, kZero<T>) + (k_d * d + k_one);
    lanes.store(change + i, kPool ? v : where_positive<T>(ch.slope * d + ch.bias, v));
  });
  if constexpr (kPool)
    windows<T>(ch.in.h, ch.in.w, [&](int64_t count, int64_t from, int64_t to) {
      const Corners<T> y = ch.y(x + from, count);
      const Vec<T> v = picked(y, load_corners(change + from, ch.in.w, count));
      store_some(out + to, count, where_positive<T>(largest(y), v));
    });
}

template <class T, bool kPool>
void second(const NormSecondArgs& args, Channel<T>& ch, T* scratch) {
  ch.set(static_cast<const T*>(args.mean)[ch.c], static_cast<const T*>(args.var)[ch.c]);
  const Routed<T, kPool> routed{ch, args.dz, scratch};
  const NormSecondCoef k = norm_second_coef(
      ch.m, ch.r, ch.weight, static_cast<double>(static_cast<const T*>(args.p)[ch.c]),
      static_cast<double>(static_cast<const T*>(args.q)[ch.c]), second_sums(args, ch, routed));
  const Vec<T> k_u = splat<T>(k.x_u), k_dy = splat<T>(k.x_dy), k_d = splat<T>(k.x_d),
               k_one = splat<T>(k.x_one);
  for (int64_t n = 0; n < ch.in.n; ++n) {
    if (args.out_z) change_of_z<T, kPool>(args, ch, k, n, scratch);
    if (!args.out_x) continue;
    const T *x = ch.x(n), *u = ch.at(static_cast<const T*>(args.u), n), *dy = routed.plane(n);
    T* out = ch.at(static_cast<T*>(args.out_x), n);
    sweep<T>(ch.plane, [&](auto lanes, int64_t i, auto) {
      const Vec<T> d = lanes.load(x + i, ch.mean) - ch.mean;
      const Vec<T> g = routed(d, lanes.load(dy + i, kZero<T>));
      lanes.store(out + i, k_u * lanes.load(u + i, kZero<T>) + (k_dy * g + (k_d * d + k_one)));
    });
  }
  if (args.out_x) static_cast<T*>(args.out_weight)[ch.c] = static_cast<T>(k.weight);
}

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

}  // namespace

#define FM_NORM(name, Args)                                             \
  void norm_##name(const Args& args, const Parallel& parallel) {        \
    each_channel(args.in, parallel, [&](auto& channel, auto* scratch) { \
      using T = std::remove_pointer_t<decltype(scratch)>;               \
      args.in.pool ? name<T, true>(args, channel, scratch)              \
                   : name<T, false>(args, channel, scratch);            \
    });                                                                 \
  }
FM_NORM(forward, NormForwardArgs)
FM_NORM(backward, NormBackwardArgs)
FM_NORM(second, NormSecondArgs)

}  // namespace fastmeta::cpu::FM_ISA
