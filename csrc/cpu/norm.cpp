#include "cpu/norm.h"

#include "cpu/kernels.h"
#include "cpu/norm_passes.h"

namespace fastmeta::cpu::FM_ISA {
namespace {

double pixels_of(const Runs<false>& runs, int64_t chunk) {
  const int64_t each = runs.chunk * runs.kPixels;
  return static_cast<double>(std::min(each, runs.pixels - chunk % runs.chunks * each));
}

// The mean of the chunk's first run as a shift, and the sums of the shifted values and of their
// squares, (3, c): exact to rounding however far the mean is from zero.
template <class T>
void chunk_moments(const Runs<false>& runs, int64_t chunk, const T* input, double* out) {
  const int64_t begin = runs.begin(chunk), end = runs.end(chunk);
  const double run_pixels = std::min(static_cast<double>(runs.kPixels), pixels_of(runs, chunk));
  each_vector<T>(runs.c, [&](auto lanes, int64_t c) {
    const T* x = input + c;
    Affine<T> f{lanes.load(x + runs.first_pixel(begin) * runs.c), {}, {}, {}};
    const auto sum = [&](int64_t last, auto& sums, const auto& add) {
      for (int64_t run = begin; run < last; ++run, sums.spill())
        each_pixel<T>(runs, run, lanes, x, nullptr, f,
                      [&](int64_t, Vec<T> d, Vec<T>, auto chain) { add(sums.chains, d, chain); });
    };
    Sums<T, 1> to_first;
    sum(begin + 1, to_first, [](auto& s, Vec<T> d, auto chain) { s[0][chain] += d; });
    for (int64_t i = 0; i < kLanes<T>; ++i)
      f.mean[i] += static_cast<T>(to_first.wide[0][i] / run_pixels);
    Sums<T, 2> to_mean;
    sum(end, to_mean, [](auto& s, Vec<T> d, auto chain) {
      s[0][chain] += d;
      s[1][chain] += d * d;
    });
    for (int64_t i = 0; i < lanes.n; ++i) out[c + i] = static_cast<double>(f.mean[i]);
    to_mean.write(out + runs.c + c, lanes.n, runs.c);
  });
}

// Mean and biased variance of a group from the parts of its chunks.
template <class T>
void finish_moments(const double* parts, const double* pixels, int64_t chunks, int64_t c, T* mean,
                    T* var) {
  double m = 0;
  for (int64_t k = 0; k < chunks; ++k) m += pixels[k];
  for (int64_t i = 0; i < c; ++i) {
    double center = 0, squares = 0;
    for (int64_t k = 0; k < chunks; ++k) {
      const double* part = parts + 3 * c * k + i;
      center += (pixels[k] * part[0] + part[c]) / m;
    }
    mean[i] = static_cast<T>(center);
    for (int64_t k = 0; k < chunks; ++k) {
      const double* part = parts + 3 * c * k + i;
      const double gap = part[0] - static_cast<double>(mean[i]);
      squares += part[2 * c] + gap * (2 * part[c] + pixels[k] * gap);
    }
    var[i] = static_cast<T>(squares / m);
  }
}

template <class T>
void add_parts(const NormInput& in, const Parallel& parallel, NormMoments& moments) {
  const Runs<false> runs(in);
  const int64_t chunks = runs.groups * runs.chunks, each = 3 * runs.c;
  const size_t before = moments.parts.size();
  moments.parts.resize(before + chunks * each);
  for (int64_t k = 0; k < chunks; ++k) moments.pixels.push_back(pixels_of(runs, k));
  double* parts = moments.parts.data() + before;
  parallel(chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk)
      chunk_moments(runs, chunk, static_cast<const T*>(in.x), parts + chunk * each);
  });
}

template <class T>
void extremes(const NormInput& in, T* to, const Parallel& parallel) {
  const Runs<true> runs(in);
  each_run<T>(runs, parallel, [&](auto lanes, int64_t c, int64_t gc, int64_t run) {
    const T* x = static_cast<const T*>(in.x) + c;
    const Vec<T> weight = lanes.load(static_cast<const T*>(in.weight) + gc), zero{};
    const Vec<T> below = weight < zero ? splat<T>(-1) : zero;
    const Vec<T> sign = weight > zero ? splat<T>(1) : below;
    each_window(
        runs, run,
        [&](int64_t at, int64_t z) {
          Window<Vec<T>> y;
          for (int k = 0; k < 4; ++k) y.pixel[k] = sign * lanes.load(x + at + runs.in_window(k));
          const Vec<T> extreme = sign * largest(y);
          lanes.store(to + c + z, sign == zero ? lanes.load(x + at) : extreme);
        },
        [](int64_t) {});
  });
}

template <class T, bool kPool>
void apply(const NormForwardArgs& args, const Parallel& parallel) {
  const Norm<T> norm(args.in, args.mean, args.var);
  const Runs<kPool> runs(args.in);
  each_run<T>(runs, parallel, [&](auto lanes, int64_t c, int64_t gc, int64_t run) {
    const Affine<T> f = norm.affine(lanes, gc);
    write_z(runs, run, lanes, norm.x + c, static_cast<T*>(args.z) + c, f,
            [&](int64_t, Vec<T> d) { return f.y(d); });
  });
}

template <class T, bool kPool>
void forward(const NormForwardArgs& args, const Parallel& parallel) {
  NormMoments moments;
  add_parts<T>(args.in, parallel, moments);
  const int64_t c = args.in.c;
  const int64_t chunks = static_cast<int64_t>(moments.pixels.size()) / args.in.groups;
  for (int64_t g = 0; g < args.in.groups; ++g)
    finish_moments(moments.parts.data() + g * chunks * 3 * c, moments.pixels.data() + g * chunks,
                   chunks, c, static_cast<T*>(args.mean) + g * c,
                   static_cast<T*>(args.var) + g * c);
  apply<T, kPool>(args, parallel);
}

// Sums of dy and dy d, (2, groups, c).
template <class T, bool kPool>
std::vector<double> backward_sums(const NormBackwardArgs& args, const Parallel& parallel) {
  const Norm<T> norm(args.in, args.mean, args.var);
  const Runs<kPool> runs(args.in);
  const T* dz = static_cast<const T*>(args.dz);
  return channel_sums<T, 2>(
      runs, parallel, [&](auto& sums, auto lanes, int64_t c, int64_t gc, int64_t run) {
        each_pixel(runs, run, lanes, norm.x + c, dz + c, norm.affine(lanes, gc),
                   [&](int64_t, Vec<T> d, Vec<T> dy, auto chain) {
                     sums.chains[0][chain] += dy;
                     sums.chains[1][chain] += dy * d;
                   });
      });
}

// dx and the gradients of the parameters from the sums over `m` pixels.
template <class T, bool kPool>
void apply_backward(const NormBackwardArgs& args, const std::vector<double>& sums, double m,
                    const Parallel& parallel) {
  const Norm<T> norm(args.in, args.mean, args.var);
  const Runs<kPool> runs(args.in);
  const T* dz = static_cast<const T*>(args.dz);
  Constants<T, 3> factors(norm.channels);
  for (int64_t gc = 0; gc < norm.channels; ++gc) {
    const double weight = static_cast<double>(norm.weight[gc]);
    const NormBackwardCoef k =
        norm_backward_coef(m, norm.r(gc), weight, sums[gc], sums[norm.channels + gc]);
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

template <class T, bool kPool>
void backward(const NormBackwardArgs& args, const Parallel& parallel) {
  const Norm<T> norm(args.in, args.mean, args.var);
  apply_backward<T, kPool>(args, backward_sums<T, kPool>(args, parallel), norm.m(), parallel);
}

// Calls body(zero, pool) with a value of the dtype, and with std::true_type for pooling.
template <class Body>
void dispatch(const NormInput& in, const Body& body) {
  if (in.dtype == DType::f64)
    in.pool ? body(double{}, std::true_type{}) : body(double{}, std::false_type{});
  else
    in.pool ? body(float{}, std::true_type{}) : body(float{}, std::false_type{});
}

}  // namespace

FM_NORM(forward, NormForwardArgs)
FM_NORM(backward, NormBackwardArgs)

void NormMoments::add(const NormInput& some, const Parallel& parallel) {
  if (some.dtype == DType::f64)
    add_parts<double>(some, parallel, *this);
  else
    add_parts<float>(some, parallel, *this);
}

void NormMoments::finish(const NormForwardArgs& args) const {
  const auto write = [&](auto zero) {
    using T = decltype(zero);
    finish_moments(parts.data(), pixels.data(), static_cast<int64_t>(pixels.size()), args.in.c,
                   static_cast<T*>(args.mean), static_cast<T*>(args.var));
  };
  args.in.dtype == DType::f64 ? write(double{}) : write(float{});
}

void norm_extremes(const NormInput& some, void* to, const Parallel& parallel) {
  if (some.dtype == DType::f64)
    extremes(some, static_cast<double*>(to), parallel);
  else
    extremes(some, static_cast<float*>(to), parallel);
}

void norm_apply(const NormForwardArgs& some, const Parallel& parallel) {
  dispatch(some.in, [&](auto zero, auto pool) {
    apply<decltype(zero), decltype(pool)::value>(some, parallel);
  });
}

void NormBackwardSums::add(const NormBackwardArgs& some, const Parallel& parallel) {
  dispatch(some.in, [&](auto zero, auto pool) {
    const auto part = backward_sums<decltype(zero), decltype(pool)::value>(some, parallel);
    sums.resize(part.size());
    for (size_t k = 0; k < part.size(); ++k) sums[k] += part[k];
  });
}

void NormBackwardSums::apply(const NormBackwardArgs& some, double pixels,
                             const Parallel& parallel) const {
  dispatch(some.in, [&](auto zero, auto pool) {
    apply_backward<decltype(zero), decltype(pool)::value>(some, sums, pixels, parallel);
  });
}

}  // namespace fastmeta::cpu::FM_ISA
