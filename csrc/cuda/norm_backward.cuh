// norm kernels, backward.
#pragma once

#include <tuple>

#include "cuda/norm.cuh"

namespace fastmeta::cuda {

// The K coefficients of a thread's channels.
template <class T, int K, int V>
struct Coefs {
  Pack<T, V> coef[K];
  __device__ Coefs(const NormInput& in, const void* coefs, int64_t gc) {
    for (int k = 0; k < K; ++k)
      coef[k] = load<V>(static_cast<const T*>(coefs) + k * in.groups * in.c + gc);
  }
  __device__ T operator()(int k, int v) const { return coef[k].lane[v]; }
};
template <class T, int K>
__device__ void write_coefs(const NormInput& in, int64_t gc, const double (&coefs)[K], void* out) {
  for (int k = 0; k < K; ++k)
    static_cast<T*>(out)[k * in.groups * in.c + gc] = static_cast<T>(coefs[k]);
}

// Launches the passes that kernels(kind) returns: the sums of every channel, its coefficients from
// them, and the elementwise pass.
template <class Args, class Launch, class Kernels>
void launch_norm_passes(const Args& args, const NormScratch& scratch, const Launch& launch,
                        const Kernels& kernels) {
  const NormInput& in = args.in;
  const NormPlan plan = norm_plan(in, in.pool);
  dispatch_norm(in, plan.lanes, [&](auto kind) {
    const auto [sums, finish, elementwise] = kernels(kind);
    const dim3 grid = norm_grid(in, plan), threads = norm_threads(plan);
    launch(sums, grid, threads, args, plan, scratch.partial);
    launch(finish, finish_grid(in), finish_threads(), args, plan.chunks, scratch);
    launch(elementwise, grid, threads, args, plan, scratch.coef);
  });
}

// Sums of dy and dy d.
template <class T, int V, bool kPool>
__global__ void norm_backward_sums_kernel(NormBackwardArgs args, NormPlan plan, double* partial) {
  const NormInput& in = args.in;
  const Share share(in, plan);
  const Affine<T, V> f(in, args.mean, args.var, share.group * in.c + share.c);
  double sums[kNormBackwardSums][V] = {};
  thread_sums<T, kNormBackwardSums, V, kPool>(
      in, share, sums, [&](auto& chain, const Pixels<kPool>& pixels) {
        const Values<T, V> d = f.d(pixels, in.x), dy = back(pixels, f.y(d), args.dz);
        for (int k = 0; k < kNormPixels; ++k)
          for (int v = 0; v < V; ++v) {
            chain[0][v] += dy(k, v);
            chain[1][v] += dy(k, v) * d(k, v);
          }
      });
  write_partial(in, sums, partial);
}

template <class T>
__global__ void norm_backward_finish_kernel(NormBackwardArgs args, int chunks,
                                            NormScratch scratch) {
  const NormInput& in = args.in;
  each_total<kNormBackwardSums>(in, chunks, scratch.partial, [&](int64_t gc, const double* sums) {
    const auto of = [&](const void* values) {
      return static_cast<double>(static_cast<const T*>(values)[gc]);
    };
    const NormBackwardCoef k =
        norm_backward_coef(static_cast<double>(in.n * in.h * in.w),
                           1 / std::sqrt(of(args.var) + in.eps), of(in.weight), sums[0], sums[1]);
    const double coefs[kNormBackwardCoefs] = {k.dy, k.d, k.one};
    write_coefs<T>(in, gc, coefs, scratch.coef);
    static_cast<T*>(args.dweight)[gc] = static_cast<T>(k.dweight);
    static_cast<T*>(args.dbias)[gc] = static_cast<T>(sums[0]);
  });
}

template <class T, int V, bool kPool>
__global__ void norm_backward_kernel(NormBackwardArgs args, NormPlan plan, const void* coefs) {
  const NormInput& in = args.in;
  const Share share(in, plan);
  const int64_t gc = share.group * in.c + share.c;
  const Affine<T, V> f(in, args.mean, args.var, gc);
  const Coefs<T, kNormBackwardCoefs, V> coef(in, coefs, gc);
  each_pixels<kPool>(in, share, share.first, share.end, [&](const Pixels<kPool>& pixels) {
    const Values<T, V> d = f.d(pixels, in.x), dy = back(pixels, f.y(d), args.dz);
    write(pixels, values<T, V>([&](int k, int v) {
            return coef(0, v) * dy(k, v) + (coef(1, v) * d(k, v) + coef(2, v));
          }),
          args.dx);
  });
}

template <class Launch>
void launch_norm_backward(const NormBackwardArgs& args, const NormScratch& scratch,
                          const Launch& launch) {
  launch_norm_passes(args, scratch, launch, [](auto kind) {
    using Kind = decltype(kind);
    using T = typename Kind::T;
    return std::make_tuple(norm_backward_sums_kernel<T, Kind::kLanes, Kind::kPool>,
                           norm_backward_finish_kernel<T>,
                           norm_backward_kernel<T, Kind::kLanes, Kind::kPool>);
  });
}

}  // namespace fastmeta::cuda
