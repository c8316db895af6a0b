#include "cpu/norm.h"

#include "cpu/kernels.h"

namespace fastmeta::cpu::FM_ISA {
namespace {

double pixels_of(const Runs<false>& runs, int64_t chunk) {
  const int64_t each = runs.chunk * runs.kPixels;
  return static_cast<double>(std::min(each, runs.pixels - chunk % runs.chunks * each));
}

// A shift near the chunk's mean, and the sums of the shifted values and of their squares, (3, c):
// exact to rounding however far the mean is from zero.
template <class T>
void chunk_moments(const Runs<false>& runs, int64_t chunk, const T* input, double* out) {
  const int64_t begin = runs.begin(chunk), end = runs.end(chunk);
  each_vector<T>(runs.c, [&](auto lanes, int64_t c) {
    const T* x = input + c;
    Affine<T> f{lanes.load(x + runs.first_pixel(begin) * runs.c), {}, {}};
    const auto sum = [&](auto& sums, const auto& add) {
      for (int64_t run = begin; run < end; ++run, sums.spill())
        each_pixel<T>(runs, run, lanes, x, nullptr, f,
                      [&](int64_t, Vec<T> d, Vec<T>, auto chain) { add(sums.chains, d, chain); });
    };
    Sums<T, 1> to_first;
    sum(to_first, [](auto& s, Vec<T> d, auto chain) { s[0][chain] += d; });
    for (int64_t i = 0; i < kLanes<T>; ++i)
      f.mean[i] += static_cast<T>(to_first.wide[0][i] / pixels_of(runs, chunk));
    Sums<T, 2> to_mean;
    sum(to_mean, [](auto& s, Vec<T> d, auto chain) {
      s[0][chain] += d;
      s[1][chain] += d * d;
    });
    for (int64_t i = 0; i < lanes.n; ++i) out[c + i] = static_cast<double>(f.mean[i]);
    to_mean.write(out + runs.c + c, lanes.n, runs.c);
  });
}

template <class T>
void moments(const NormForwardArgs& args, const Parallel& parallel) {
  const Runs<false> runs(args.in);
  const int64_t chunks = runs.groups * runs.chunks, each = 3 * runs.c;
  std::vector<double> parts(chunks * each);
  parallel(chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk)
      chunk_moments(runs, chunk, static_cast<const T*>(args.in.x), parts.data() + chunk * each);
  });
  const double m = static_cast<double>(runs.pixels);
  for (int64_t gc = 0; gc < runs.groups * runs.c; ++gc) {
    const int64_t first = gc / runs.c * runs.chunks;
    double mean = 0, var = 0;
    for (int64_t k = first; k < first + runs.chunks; ++k) {
      const double* part = parts.data() + k * each + gc % runs.c;
      mean += (pixels_of(runs, k) * part[0] + part[runs.c]) / m;
    }
    const T rounded = static_cast<T>(mean);
    for (int64_t k = first; k < first + runs.chunks; ++k) {
      const double* part = parts.data() + k * each + gc % runs.c;
      const double gap = part[0] - static_cast<double>(rounded);
      var += part[2 * runs.c] + gap * (2 * part[runs.c] + pixels_of(runs, k) * gap);
    }
    static_cast<T*>(args.mean)[gc] = rounded;
    static_cast<T*>(args.var)[gc] = static_cast<T>(var / m);
  }
}

template <class T, bool kPool>
void forward(const NormForwardArgs& args, const Parallel& parallel) {
  moments<T>(args, parallel);
  const Norm<T> norm(args.in, args.mean, args.var);
  const Runs<kPool> runs(args.in);
  each_run<T>(runs, parallel, [&](auto lanes, int64_t c, int64_t gc, int64_t run) {
    const Affine<T> f = norm.affine(lanes, gc);
    write_z(runs, run, lanes, norm.x + c, static_cast<T*>(args.z) + c, f,
            [&](int64_t, Vec<T> d) { return f.y(d); });
  });
}

template <class T, bool kPool>
void backward(const NormBackwardArgs& args, const Parallel& parallel) {
  const Norm<T> norm(args.in, args.mean, args.var);
  const Runs<kPool> runs(args.in);
  const T* dz = static_cast<const T*>(args.dz);
  const std::vector<double> sums = channel_sums<T, 2>(
      runs, parallel, [&](auto& sums, auto lanes, int64_t c, int64_t gc, int64_t run) {
        each_pixel(runs, run, lanes, norm.x + c, dz + c, norm.affine(lanes, gc),
                   [&](int64_t, Vec<T> d, Vec<T> dy, auto chain) {
                     sums.chains[0][chain] += dy;
                     sums.chains[1][chain] += dy * d;
                   });
      });
  Constants<T, 3> factors(norm.channels);
  for (int64_t gc = 0; gc < norm.channels; ++gc) {
    const double weight = static_cast<double>(norm.weight[gc]);
    const NormBackwardCoef k =
        norm_backward_coef(norm.m(), norm.r(gc), weight, sums[gc], sums[norm.channels + gc]);
    factors.at(0, gc) = static_cast<T>(k.dy);
    factors.at(1, gc) = static_cast<T>(k.d);
    factors.at(2, gc) = static_cast<T>(k.one);
    static_cast<T*>(args.dweight)[gc] = static_cast<T>(k.dweight);
    static_cast<T*>(args.dbias)[gc] = static_cast<T>(sums[gc]);
  }
  each_run<T>(runs, parallel, [&](auto lanes, int64_t c, int64_t gc, int64_t run) {
    const Vec<T> k_dy = factors.load(0, lanes, gc), k_d = factors.load(1, lanes, gc),
                 k_one = factors.load(2, lanes, gc);
    T* dx = static_cast<T*>(args.dx) + c;
    each_pixel(runs, run, lanes, norm.x + c, dz + c, norm.affine(lanes, gc),
               [&](int64_t at, Vec<T> d, Vec<T> dy, auto) {
                 lanes.store(dx + at, k_dy * dy + (k_d * d + k_one));
               });
  });
}

}  // namespace

FM_NORM(forward, NormForwardArgs)
FM_NORM(backward, NormBackwardArgs)

}  // namespace fastmeta::cpu::FM_ISA
