// Shared by the norm kernels: per-channel constants, and the loops over runs and channels.
#pragma once

#include <limits>
#include <vector>

#include "cpu/pixels.h"

namespace fastmeta::cpu::FM_ISA {

// Calls body(lanes, c, gc, run) for every run and vector of channels; c is its first channel, gc
// the same counted through all groups.
template <class T, bool kPool, class Body>
void each_run(const Runs<kPool>& runs, const Parallel& parallel, const Body& body) {
  parallel(runs.groups * runs.chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t group = chunk / runs.chunks * runs.c;
      for (int64_t run = runs.begin(chunk); run < runs.end(chunk); ++run)
        each_vector<T>(runs.c, [&](auto lanes, int64_t c) { body(lanes, c, group + c, run); });
    }
  });
}

// K sums per channel, (K, groups, c): body(sums, lanes, c, gc, run) adds a run. Chunks are summed
// in order, whichever threads ran them.
template <class T, int K, bool kPool, class Body>
std::vector<double> channel_sums(const Runs<kPool>& runs, const Parallel& parallel,
                                 const Body& body) {
  const int64_t channels = runs.groups * runs.c, chunks = runs.groups * runs.chunks;
  std::vector<double> parts(chunks * K * runs.c), totals(K * channels);
  parallel(chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk)
      each_vector<T>(runs.c, [&](auto lanes, int64_t c) {
        Sums<T, K> sums;
        for (int64_t run = runs.begin(chunk); run < runs.end(chunk); ++run) {
          body(sums, lanes, c, chunk / runs.chunks * runs.c + c, run);
          sums.spill();
        }
        sums.write(parts.data() + chunk * K * runs.c + c, lanes.n, runs.c);
      });
  });
  const double* part = parts.data();
  for (int64_t chunk = 0; chunk < chunks; ++chunk)
    for (int64_t k = 0; k < K; ++k) {
      double* total = totals.data() + k * channels + chunk / runs.chunks * runs.c;
      for (int64_t c = 0; c < runs.c; ++c) total[c] += *part++;
    }
  return totals;
}

// K constants per channel, (K, groups * c), loaded as vectors of channels.
template <class T, int K>
struct Constants {
  int64_t channels;
  std::vector<T> values;
  explicit Constants(int64_t channels) : channels(channels), values(K * channels) {}
  T& at(int k, int64_t gc) { return values[k * channels + gc]; }
  template <class Lanes>
  Vec<T> load(int k, Lanes lanes, int64_t gc) const {
    return lanes.load(values.data() + k * channels + gc);
  }
};

// The statistics and weights of all channels of all groups.
template <class T>
struct Norm {
  const NormInput& in;
  const int64_t channels;
  const T *x, *weight, *mean, *var;
  Constants<T, 1> slope;

  Norm(const NormInput& in, const void* mean_, const void* var_)
      : in(in),
        channels(in.groups * in.c),
        x(static_cast<const T*>(in.x)),
        weight(static_cast<const T*>(in.weight)),
        mean(static_cast<const T*>(mean_)),
        var(static_cast<const T*>(var_)),
        slope(channels) {
    for (int64_t gc = 0; gc < channels; ++gc) slope.at(0, gc) = static_cast<T>(weight[gc] * r(gc));
  }
  double m() const { return static_cast<double>(in.n * in.h * in.w); }
  double r(int64_t gc) const { return 1 / std::sqrt(static_cast<double>(var[gc]) + in.eps); }
  template <class Lanes>
  Affine<T> affine(Lanes lanes, int64_t gc) const {
    const T threshold = in.linear ? std::numeric_limits<T>::quiet_NaN() : T{0};
    return {lanes.load(mean + gc), slope.load(0, lanes, gc),
            lanes.load(static_cast<const T*>(in.bias) + gc), Vec<T>{} + threshold};
  }
};

// Defines the kernel norm_<name>, which dispatches to name<T, kPool>(args, parallel).
#define FM_NORM(name, Args)                                                            \
  void norm_##name(const Args& args, const Parallel& parallel) {                       \
    const bool wide = args.in.dtype == DType::f64;                                     \
    if (args.in.pool)                                                                  \
      wide ? name<double, true>(args, parallel) : name<float, true>(args, parallel);   \
    else                                                                               \
      wide ? name<double, false>(args, parallel) : name<float, false>(args, parallel); \
  }

}  // namespace fastmeta::cpu::FM_ISA
