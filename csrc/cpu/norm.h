// What the norm kernels share: the constants of all channels, and the loops over runs and channels.
#pragma once

#include <vector>

#include "cpu/pixels.h"

namespace fastmeta::cpu::FM_ISA {

// body(lanes, c, run) for every run and vector of channels.
template <class T, bool kPool, class Body>
void each_run(const Runs<kPool>& runs, const Parallel& parallel, const Body& body) {
  parallel(runs.chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t run = begin * runs.chunk; run < runs.end(end); ++run)
      each_vector<T>(runs.c, [&](auto lanes, int64_t c) { body(lanes, c, run); });
  });
}

// K sums a channel, (K, c): body(sums, lanes, c, run) adds those of a run. Added up in the order of
// the chunks, whoever ran them.
template <class T, int K, bool kPool, class Body>
std::vector<double> channel_sums(const Runs<kPool>& runs, const Parallel& parallel,
                                 const Body& body) {
  const int64_t each = K * runs.c;
  std::vector<double> parts(runs.chunks * each);
  parallel(runs.chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk)
      each_vector<T>(runs.c, [&](auto lanes, int64_t c) {
        Sums<T, K> sums;
        for (int64_t run = chunk * runs.chunk; run < runs.end(chunk + 1); ++run) {
          body(sums, lanes, c, run);
          sums.spill();
        }
        sums.write(parts.data() + chunk * each + c, lanes.n, runs.c);
      });
  });
  for (int64_t chunk = 1; chunk < runs.chunks; ++chunk)
    for (int64_t i = 0; i < each; ++i) parts[i] += parts[chunk * each + i];
  parts.resize(each);
  return parts;
}

// K constants a channel, (K, c), for vectors of channels.
template <class T, int K>
struct Constants {
  int64_t channels;
  std::vector<T> values;
  explicit Constants(int64_t channels) : channels(channels), values(K * channels) {}
  T& at(int k, int64_t c) { return values[k * channels + c]; }
  template <class Lanes>
  Vec<T> load(int k, Lanes lanes, int64_t c) const {
    return lanes.load(values.data() + k * channels + c);
  }
};

// The block's constants of all channels.
template <class T>
struct Norm {
  const NormInput& in;
  const T *x, *weight, *mean, *var;
  Constants<T, 1> slope;

  Norm(const NormInput& in, const void* mean_, const void* var_)
      : in(in),
        x(static_cast<const T*>(in.x)),
        weight(static_cast<const T*>(in.weight)),
        mean(static_cast<const T*>(mean_)),
        var(static_cast<const T*>(var_)),
        slope(in.c) {
    for (int64_t c = 0; c < in.c; ++c) slope.at(0, c) = static_cast<T>(weight[c] * r(c));
  }
  double m() const { return static_cast<double>(in.n * in.h * in.w); }
  double r(int64_t c) const { return 1 / std::sqrt(static_cast<double>(var[c]) + in.eps); }
  template <class Lanes>
  Affine<T> affine(Lanes lanes, int64_t c) const {
    return {lanes.load(mean + c), slope.load(0, lanes, c),
            lanes.load(static_cast<const T*>(in.bias) + c)};
  }
};

// The kernel from name<T, kPool>(args, parallel).
#define FM_NORM(name, Args)                                                            \
  void norm_##name(const Args& args, const Parallel& parallel) {                       \
    const bool wide = args.in.dtype == DType::f64;                                     \
    if (args.in.pool)                                                                  \
      wide ? name<double, true>(args, parallel) : name<float, true>(args, parallel);   \
    else                                                                               \
      wide ? name<double, false>(args, parallel) : name<float, false>(args, parallel); \
  }

}  // namespace fastmeta::cpu::FM_ISA
