// norm kernels, forward: partial sums over chunks of pixels, their totals and the statistics of
// every channel, then one elementwise pass. The others have the same structure.
#pragma once

#include "cuda/channel_sums.cuh"
#include "cuda/launch.h"

namespace fastmeta::cuda {

// Dtype, channels per thread and pooling as compile-time constants: body(NormKind{}).
template <class T_, int kLanes_, bool kPool_>
struct NormKind {
  using T = T_;
  static constexpr int kLanes = kLanes_;
  static constexpr bool kPool = kPool_;
};
template <class Body>
void dispatch_norm(const NormInput& in, int lanes, const Body& body) {
  const auto of = [&](auto zero) {
    using T = decltype(zero);
    constexpr int kWide = 16 / sizeof(T);
    if (in.pool)
      lanes == 1 ? body(NormKind<T, 1, true>{}) : body(NormKind<T, kWide, true>{});
    else
      lanes == 1 ? body(NormKind<T, 1, false>{}) : body(NormKind<T, kWide, false>{});
  };
  in.dtype == DType::f64 ? of(double{}) : of(float{});
}

inline dim3 norm_grid(const NormInput& in, const NormPlan& plan) {
  return dim3(static_cast<unsigned>(in.groups), plan.chunks, plan.tiles);
}
inline dim3 norm_threads(const NormPlan& plan) {
  return dim3(plan.wide, plan.step);
}
inline dim3 finish_grid(const NormInput& in) {
  return dim3(static_cast<unsigned>(in.groups), blocks_for(in.c, kNormMaxWide));
}
inline dim3 finish_threads() {
  return dim3(kNormMaxWide, kNormThreads / kNormMaxWide);
}

// Sums of the differences to the group's first pixel and of their squares. Within a chain they are
// relative to the chain's first pixel: with so few terms the squares stay close to the variance.
template <class T, int V>
__global__ void norm_moments_kernel(NormInput in, NormPlan plan, double* partial) {
  const Share share(in, plan);
  const auto at = [&](int pixel) {
    return load<V>(static_cast<const T*>(in.x) + Pixels<false>(in, share, pixel).at(0));
  };
  const Pack<T, V> first = at(0);
  double sums[kNormMoments][V] = {};
  each_chain<false>(share, [&](int begin, int end) {
    const Pack<T, V> centre = at(begin);
    T chain[kNormMoments][V] = {};
    double count = 0;
    each_pixels<false>(in, share, begin, end, [&](const Pixels<false>& pixels) {
      const Values<T, V> x = read<T, V>(pixels, in.x);
      for (int k = 0; k < kNormPixels; ++k) {
        if (!pixels.has(k)) break;
        count += 1;
        for (int v = 0; v < V; ++v) {
          const T d = x(k, v) - centre.lane[v];
          chain[0][v] += d;
          chain[1][v] += d * d;
        }
      }
    });
    for (int v = 0; v < V; ++v) {
      const double gap = static_cast<double>(centre.lane[v]) - static_cast<double>(first.lane[v]);
      const double sum = static_cast<double>(chain[0][v]);
      sums[0][v] += sum + count * gap;
      sums[1][v] += static_cast<double>(chain[1][v]) + gap * (2 * sum + count * gap);
    }
  });
  write_partial(in, sums, partial);
}

template <class T>
__global__ void norm_moments_finish_kernel(NormForwardArgs args, int chunks,
                                           const double* partial) {
  const NormInput& in = args.in;
  each_total<kNormMoments>(in, chunks, partial, [&](int64_t gc, const double* sums) {
    const int64_t pixels = in.n * in.h * in.w, first = gc / in.c * pixels * in.c + gc % in.c;
    const double m = static_cast<double>(pixels);
    const double centre = static_cast<double>(static_cast<const T*>(in.x)[first]);
    const T mean = static_cast<T>(centre + sums[0] / m);
    const double gap = centre - static_cast<double>(mean);
    static_cast<T*>(args.mean)[gc] = mean;
    static_cast<T*>(args.var)[gc] = static_cast<T>((sums[1] + gap * (2 * sums[0] + m * gap)) / m);
  });
}

template <class T, int V, bool kPool>
__global__ void norm_forward_kernel(NormForwardArgs args, NormPlan plan) {
  const NormInput& in = args.in;
  const Share share(in, plan);
  const Affine<T, V> f(in, args.mean, args.var, share.group * in.c + share.c);
  each_pixels<kPool>(in, share, share.first, share.end, [&](const Pixels<kPool>& pixels) {
    const Values<T, V> y = f.y(f.d(pixels, in.x));
    write_z(pixels, y, y, args.z);
  });
}

template <class Launch>
void launch_norm_forward(const NormForwardArgs& args, double* partial, const Launch& launch) {
  const NormInput& in = args.in;
  const NormPlan moments = norm_plan(in, false), plan = norm_plan(in, in.pool);
  dispatch_norm(in, plan.lanes, [&](auto kind) {
    using Kind = decltype(kind);
    using T = typename Kind::T;
    launch(norm_moments_kernel<T, Kind::kLanes>, norm_grid(in, moments), norm_threads(moments), in,
           moments, partial);
    launch(norm_moments_finish_kernel<T>, finish_grid(in), finish_threads(), args, moments.chunks,
           partial);
    launch(norm_forward_kernel<T, Kind::kLanes, Kind::kPool>, norm_grid(in, plan),
           norm_threads(plan), args, plan);
  });
}

}  // namespace fastmeta::cuda
