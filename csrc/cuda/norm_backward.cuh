// norm kernels, backward.
#pragma once

#include "cuda/norm.cuh"

namespace fastmeta::cuda {

// The K constants of a thread's channels.
template <class T, int K, int V>
struct Coefs {
  Pack<T, V> coef[K];
  __device__ Coefs(const NormInput& in, const void* coefs, int64_t gc) {
    for (int k = 0; k < K; ++k)
      coef[k] = load<V>(static_cast<const T*>(coefs) + k * in.groups * in.c + gc);
  }
  __device__ T operator()(int k, int v) const { return coef[k].lane[v]; }
};

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
    for (int i = 0; i < kNormBackwardCoefs; ++i)
      static_cast<T*>(scratch.coef)[i * in.groups * in.c + gc] = static_cast<T>(coefs[i]);
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
  const NormInput& in = args.in;
  const NormPlan plan = norm_plan(in, in.pool);
  dispatch_norm(in, plan.lanes, [&](auto kind) {
    using Kind = decltype(kind);
    using T = typename Kind::T;
    const dim3 grid = norm_grid(in, plan), threads = norm_threads(plan);
    launch(norm_backward_sums_kernel<T, Kind::kLanes, Kind::kPool>, grid, threads, args, plan,
           scratch.partial);
    launch(norm_backward_finish_kernel<T>, finish_grid(in), finish_threads(), args, plan.chunks,
           scratch);
    launch(norm_backward_kernel<T, Kind::kLanes, Kind::kPool>, grid, threads, args, plan,
           scratch.coef);
  });
}

}  // namespace fastmeta::cuda
