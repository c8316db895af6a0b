#include "cpu/kernels.h"
#include "cpu/norm.h"

namespace fastmeta::cpu::FM_ISA {
namespace {

// Sums of u, u d, dy, dy d and u dy; the last three are zero without dz.
template <class T, bool kPool>
std::vector<double> second_sums(const NormSecondArgs& args, const Norm<T>& norm,
                                const Runs<kPool>& runs, const Parallel& parallel) {
  const T *directions = static_cast<const T*>(args.u), *dz = static_cast<const T*>(args.dz);
  return channel_sums<T, 5>(
      runs, parallel, [&](auto& sums, auto lanes, int64_t c, int64_t gc, int64_t run) {
        each_pixel(runs, run, lanes, norm.x + c, dz ? dz + c : nullptr, norm.affine(lanes, gc),
                   [&](int64_t at, Vec<T> d, Vec<T> dy, auto chain) {
                     const Vec<T> u = lanes.load(directions + c + at);
                     sums.chains[0][chain] += u;
                     sums.chains[1][chain] += u * d;
                     if (!dz) return;
                     sums.chains[2][chain] += dy;
                     sums.chains[3][chain] += dy * d;
                     sums.chains[4][chain] += u * dy;
                   });
      });
}

enum Factor { kZU, kZD, kZOne, kXU, kXDy, kXD, kXOne, kFactors };

template <class T, bool kPool>
void second(const NormSecondArgs& args, const Parallel& parallel) {
  const Norm<T> norm(args.in, args.mean, args.var);
  const Runs<kPool> runs(args.in);
  const std::vector<double> sums = second_sums<T, kPool>(args, norm, runs, parallel);
  Constants<T, kFactors> factors(norm.channels);
  for (int64_t gc = 0; gc < norm.channels; ++gc) {
    const auto sum = [&](int k) { return sums[k * norm.channels + gc]; };
    const NormSecondCoef k =
        norm_second_coef(norm.m(), norm.r(gc), static_cast<double>(norm.weight[gc]),
                         static_cast<double>(static_cast<const T*>(args.p)[gc]),
                         static_cast<double>(static_cast<const T*>(args.q)[gc]),
                         {sum(0), sum(1), sum(2), sum(3), sum(4)});
    const double values[kFactors] = {k.z_u, k.z_d, k.z_one, k.x_u, k.x_dy, k.x_d, k.x_one};
    for (int i = 0; i < kFactors; ++i) factors.at(i, gc) = static_cast<T>(values[i]);
    if (args.out_x) static_cast<T*>(args.out_weight)[gc] = static_cast<T>(k.weight);
  }
  each_run<T>(runs, parallel, [&](auto lanes, int64_t c, int64_t gc, int64_t run) {
    const Affine<T> f = norm.affine(lanes, gc);
    const T *x = norm.x + c, *u = static_cast<const T*>(args.u) + c;
    Vec<T> k[kFactors];
    for (int i = 0; i < kFactors; ++i) k[i] = factors.load(i, lanes, gc);
    if (args.out_z)
      write_z(runs, run, lanes, x, static_cast<T*>(args.out_z) + c, f, [&](int64_t at, Vec<T> d) {
        return k[kZU] * lanes.load(u + at) + (k[kZD] * d + k[kZOne]);
      });
    if (!args.out_x) return;
    T* out = static_cast<T*>(args.out_x) + c;
    each_pixel(runs, run, lanes, x, static_cast<const T*>(args.dz) + c, f,
               [&](int64_t at, Vec<T> d, Vec<T> dy, auto) {
                 const Vec<T> rest = k[kXD] * d + k[kXOne];
                 lanes.store(out + at, k[kXU] * lanes.load(u + at) + (k[kXDy] * dy + rest));
               });
  });
}

}  // namespace

FM_NORM(second, NormSecondArgs)

}  // namespace fastmeta::cpu::FM_ISA
