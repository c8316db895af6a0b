#include "cpu/kernels.h"
#include "cpu/norm.h"

namespace fastmeta::cpu::FM_ISA {
namespace {

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

}  // namespace

FM_NORM(second, NormSecondArgs)

}  // namespace fastmeta::cpu::FM_ISA
