// norm kernels, second order: tangents along a direction.
#pragma once

#include "cuda/norm_backward.cuh"

namespace fastmeta::cuda {

// Minimum of resident blocks per multiprocessor, to have enough loads in flight. In the float
// kernels this spills a few of the double sums, which are accessed once per 16 pixels.
constexpr int kNormResident = 2;

// Sums of u, u d, dy, dy d and u dy; the last three are zero without dz.
template <class T, int V, bool kPool>
__global__ void __launch_bounds__(kNormThreads, kNormResident)
    norm_second_sums_kernel(NormSecondArgs args, NormPlan plan, double* partial) {
  const NormInput& in = args.in;
  const Share share(in, plan);
  const Affine<T, V> f(in, args.mean, args.var, share.group * in.c + share.c);
  double sums[kNormSecondSums][V] = {};
  thread_sums<T, kNormSecondSums, V, kPool>(
      in, share, sums, [&](auto& chain, const Pixels<kPool>& pixels) {
        const Values<T, V> d = f.d(pixels, in.x), u = read<T, V>(pixels, args.u),
                           dy = back(pixels, f.y(d), args.dz);
        for (int k = 0; k < kNormPixels; ++k)
          for (int v = 0; v < V; ++v) {
            chain[0][v] += u(k, v);
            chain[1][v] += u(k, v) * d(k, v);
            chain[2][v] += dy(k, v);
            chain[3][v] += dy(k, v) * d(k, v);
            chain[4][v] += u(k, v) * dy(k, v);
          }
      });
  write_partial(in, sums, partial);
}

enum NormSecondFactor { kZU, kZD, kZOne, kXU, kXDy, kXD, kXOne };

template <class T>
__global__ void norm_second_finish_kernel(NormSecondArgs args, int chunks, NormScratch scratch) {
  const NormInput& in = args.in;
  each_total<kNormSecondSums>(in, chunks, scratch.partial, [&](int64_t gc, const double* sums) {
    const auto of = [&](const void* values) {
      return static_cast<double>(static_cast<const T*>(values)[gc]);
    };
    const NormSecondCoef k = norm_second_coef(
        static_cast<double>(in.n * in.h * in.w), 1 / std::sqrt(of(args.var) + in.eps),
        of(in.weight), of(args.p), of(args.q), {sums[0], sums[1], sums[2], sums[3], sums[4]});
    const double coefs[kNormSecondCoefs] = {k.z_u, k.z_d, k.z_one, k.x_u, k.x_dy, k.x_d, k.x_one};
    write_coefs<T>(in, gc, coefs, scratch.coef);
    if (args.out_x) static_cast<T*>(args.out_weight)[gc] = static_cast<T>(k.weight);
  });
}

template <class T, int V, bool kPool>
__global__ void __launch_bounds__(kNormThreads, kNormResident)
    norm_second_kernel(NormSecondArgs args, NormPlan plan, const void* coefs) {
  const NormInput& in = args.in;
  const Share share(in, plan);
  const int64_t gc = share.group * in.c + share.c;
  const Affine<T, V> f(in, args.mean, args.var, gc);
  const Coefs<T, kNormSecondCoefs, V> coef(in, coefs, gc);
  each_pixels<kPool>(in, share, share.first, share.end, [&](const Pixels<kPool>& pixels) {
    const Values<T, V> d = f.d(pixels, in.x), y = f.y(d), u = read<T, V>(pixels, args.u);
    if (args.out_z)
      write_z(pixels, y, values<T, V>([&](int k, int v) {
                return coef(kZU, v) * u(k, v) + (coef(kZD, v) * d(k, v) + coef(kZOne, v));
              }),
              args.out_z);
    if (!args.out_x) return;
    const Values<T, V> dy = back(pixels, y, args.dz);
    write(pixels, values<T, V>([&](int k, int v) {
            const T rest = coef(kXD, v) * d(k, v) + coef(kXOne, v);
            return coef(kXU, v) * u(k, v) + (coef(kXDy, v) * dy(k, v) + rest);
          }),
          args.out_x);
  });
}

template <class Launch>
void launch_norm_second(const NormSecondArgs& args, const NormScratch& scratch,
                        const Launch& launch) {
  launch_norm_passes(args, scratch, launch, [](auto kind) {
    using Kind = decltype(kind);
    using T = typename Kind::T;
    return std::make_tuple(norm_second_sums_kernel<T, Kind::kLanes, Kind::kPool>,
                           norm_second_finish_kernel<T>,
                           norm_second_kernel<T, Kind::kLanes, Kind::kPool>);
  });
}

}  // namespace fastmeta::cuda
