// How the threads of the norm kernels visit channels-last pixels, and ReLU with pooling, forward
// and backward.
#pragma once

#include "cuda/common.cuh"
#include "fastmeta/norm_plan.h"
#include "fastmeta/window.h"

namespace fastmeta::cuda {

// V adjacent channels, loaded and stored at once.
template <class T, int V>
struct alignas(V * sizeof(T)) Pack {
  T lane[V];
};
template <int V, class T>
__device__ Pack<T, V> load(const T* p) {
  return *reinterpret_cast<const Pack<T, V>*>(p);
}
template <class T, int V>
__device__ void store(T* p, const Pack<T, V>& pack) {
  *reinterpret_cast<Pack<T, V>*>(p) = pack;
}

// The work of a thread: adjacent channels of a group, from c on, of every step-th unit. A block is
// (wide, step) threads, the grid (groups, chunks, tiles) blocks.
struct Share {
  int64_t group;
  int64_t c;
  int first;
  int end;
  int step;

  __device__ Share(const NormInput& in, const NormPlan& plan) {
    const int begin = blockIdx.y * plan.chunk;
    group = blockIdx.x;
    c = static_cast<int64_t>(blockIdx.z * plan.wide + threadIdx.x) * plan.lanes;
    first = begin + static_cast<int>(threadIdx.y);
    end = begin + plan.chunk < plan.units ? begin + plan.chunk : plan.units;
    step = plan.step;
    if (c >= in.c) c = end = 0;  // nothing to do past the last channel
  }
};

// The pixels that a thread visits at a time: a pooling window ...
template <bool kPool>
struct Pixels {
  int64_t x;          // offset of the first
  int64_t z;          // offset of the window's output
  int64_t row, col;   // offsets of the pixel below and to the right
  bool right, below;  // whether the window has these

  __device__ Pixels(const NormInput& in, const Share& share, int unit)
      : row(in.w * in.c), col(in.c) {
    const unsigned wide = static_cast<unsigned>(in.w + 1) / 2;
    const unsigned plane = static_cast<unsigned>(in.h + 1) / 2 * wide;
    const unsigned k = static_cast<unsigned>(unit), i = k % plane / wide, j = k % wide;
    const int64_t image = share.group * in.n + k / plane;
    x = ((image * in.h + 2 * i) * in.w + 2 * j) * in.c + share.c;
    right = 2 * j + 1 < in.w;
    below = 2 * i + 1 < in.h;
    z = ((image * (in.h / 2) + i) * (in.w / 2) + j) * in.c + share.c;
  }
  static __device__ int stride(const Share& share) { return share.step; }
  __device__ int64_t at(int k) const { return x + k / 2 * row + k % 2 * col; }
  __device__ bool has(int k) const { return (k % 2 == 0 || right) && (k / 2 == 0 || below); }
  __device__ bool whole() const { return right && below; }
};
// ... or as many single pixels, `spacing` elements apart.
template <>
struct Pixels<false> {
  int64_t x, spacing;
  int step, left;  // units between pixels, and up to the end

  __device__ Pixels(const NormInput& in, const Share& share, int unit)
      : x((share.group * in.n * in.h * in.w + unit) * in.c + share.c),
        spacing(share.step * in.c),
        step(share.step),
        left(share.end - unit) {}
  static __device__ int stride(const Share& share) { return kNormPixels * share.step; }
  __device__ int64_t at(int k) const { return x + k * spacing; }
  __device__ bool has(int k) const { return k * step < left; }
};

// Calls body(pixels) for the thread's units in [begin, end).
template <bool kPool, class Body>
__device__ void each_pixels(const NormInput& in, const Share& share, int begin, int end,
                            const Body& body) {
  for (int k = begin; k < end; k += Pixels<kPool>::stride(share)) body(Pixels<kPool>(in, share, k));
}

// Values of a thread in registers: V channels of each pixel.
template <class T, int V>
struct Values {
  Pack<T, V> pixel[kNormPixels];

  __device__ T operator()(int k, int v) const { return pixel[k].lane[v]; }
  __device__ Window<T> window(int v) const {
    return {{(*this)(0, v), (*this)(1, v), (*this)(2, v), (*this)(3, v)}};
  }
};

template <class T, int V, class Of>
__device__ Values<T, V> values(const Of& of) {
  Values<T, V> result;
  for (int k = 0; k < kNormPixels; ++k)
    for (int v = 0; v < V; ++v) result.pixel[k].lane[v] = of(k, v);
  return result;
}

// Zeros where there is no pixel.
template <class T, int V, bool kPool>
__device__ Values<T, V> read(const Pixels<kPool>& pixels, const void* images) {
  Values<T, V> result{};
  for (int k = 0; k < kNormPixels; ++k)
    if (pixels.has(k)) result.pixel[k] = load<V>(static_cast<const T*>(images) + pixels.at(k));
  return result;
}
template <class T, int V, bool kPool>
__device__ void write(const Pixels<kPool>& pixels, const Values<T, V>& values, void* images) {
  for (int k = 0; k < kNormPixels; ++k)
    if (pixels.has(k)) store(static_cast<T*>(images) + pixels.at(k), values.pixel[k]);
}

// d = x - mean and y = slope d + bias. y is rounded once, so that the ReLU mask is the same in
// every kernel.
template <class T, int V>
struct Affine {
  T mean[V], slope[V], bias[V];

  __device__ Affine(const NormInput& in, const void* means, const void* vars, int64_t gc) {
    for (int v = 0; v < V; ++v) {
      mean[v] = static_cast<const T*>(means)[gc + v];
      bias[v] = static_cast<const T*>(in.bias)[gc + v];
      slope[v] = static_cast<const T*>(in.weight)[gc + v] /
                 std::sqrt(static_cast<const T*>(vars)[gc + v] + static_cast<T>(in.eps));
    }
  }
  template <bool kPool>
  __device__ Values<T, V> d(const Pixels<kPool>& pixels, const void* x) const {
    const Values<T, V> own = read<T, V>(pixels, x);
    return values<T, V>([&](int k, int v) { return own(k, v) - mean[v]; });
  }
  __device__ Values<T, V> y(const Values<T, V>& d) const {
    return values<T, V>([&](int k, int v) { return std::fma(slope[v], d(k, v), bias[v]); });
  }
};

// The gradient of y from that of z; dz may be null.
template <class T, int V>
__device__ Values<T, V> back(const Pixels<false>& pixels, const Values<T, V>& y, const void* dz) {
  const Values<T, V> up = dz ? read<T, V>(pixels, dz) : Values<T, V>{};
  return values<T, V>([&](int k, int v) { return where_positive(y(k, v), up(k, v)); });
}
template <class T, int V>
__device__ Values<T, V> back(const Pixels<true>& pixels, const Values<T, V>& y, const void* dz) {
  Pack<T, V> up{};
  if (dz && pixels.whole()) up = load<V>(static_cast<const T*>(dz) + pixels.z);
  Values<T, V> dy;
  for (int v = 0; v < V; ++v) {
    const Window<T> own = y.window(v), of = placed(own, where_positive(largest(own), up.lane[v]));
    for (int k = 0; k < kNormPixels; ++k) dy.pixel[k].lane[v] = of.pixel[k];
  }
  return dy;
}

// Writes z from values of the pixels where y is positive (and the maximum of its window).
template <class T, int V>
__device__ void write_z(const Pixels<false>& pixels, const Values<T, V>& y, const Values<T, V>& own,
                        void* z) {
  write(pixels, values<T, V>([&](int k, int v) { return where_positive(y(k, v), own(k, v)); }), z);
}
template <class T, int V>
__device__ void write_z(const Pixels<true>& pixels, const Values<T, V>& y, const Values<T, V>& own,
                        void* z) {
  if (!pixels.whole()) return;
  Pack<T, V> out;
  for (int v = 0; v < V; ++v) {
    const Window<T> window = y.window(v);
    out.lane[v] = where_positive(largest(window), picked(window, own.window(v)));
  }
  store(static_cast<T*>(z) + pixels.z, out);
}

}  // namespace fastmeta::cuda
