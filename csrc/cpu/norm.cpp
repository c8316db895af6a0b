#include "cpu/norm.h"

#include "cpu/kernels.h"

namespace fastmeta::cpu::FM_ISA {
namespace {

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

}  // namespace

FM_NORM(forward, NormForwardArgs)
FM_NORM(backward, NormBackwardArgs)

}  // namespace fastmeta::cpu::FM_ISA
