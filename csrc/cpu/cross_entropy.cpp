// Cross entropy of rows of logits.
#include "fastmeta/cross_entropy.h"

#include <algorithm>
#include <limits>

#include "cpu/kernels.h"
#include "cpu/mlp_math.h"
#include "cpu/vectors.h"

namespace fastmeta::cpu::FM_ISA {
namespace cross_entropy {
namespace {

template <class A>
Vec<A> exp_below(Vec<A> distance) {
  return decay<mlp::VectorMath<A>>(distance);
}

// One row of the logits, and of what is shaped like them.
template <class T>
struct Row {
  using A = Acc<T>;
  const CrossEntropyInput& in;
  int64_t row;
  int64_t first = row * in.classes;
  A factor = cross_entropy_factor<A>(in, row);
  A uniform = static_cast<A>(in.smoothing / static_cast<double>(in.classes));
  A sharp = static_cast<A>(1 - in.smoothing);

  bool counts() const { return factor == 1; }
  int64_t target() const { return first + in.target[row]; }
  A& of(const void* values) const { return static_cast<A*>(const_cast<void*>(values))[row]; }
  static A at(const void* logits, int64_t k) { return widen(static_cast<const T*>(logits)[k]); }
  template <class Body>
  void each(const Body& body) const {
    each_vector<T>(first, first + in.classes, body);
  }
  // p at one vector of the logits.
  template <class Get>
  Vec<A> probability(const Get& get, A logsumexp) const {
    return exp_below<A>(logsumexp - get(in.z, -std::numeric_limits<A>::infinity()));
  }
  void fill(void* out, A value) const {
    std::fill_n(static_cast<T*>(out) + first, in.classes, narrow<T>(value));
  }
};

template <class T>
void forward(const CrossEntropyForwardArgs& args, const Row<T>& row) {
  using A = Acc<T>;
  constexpr A kLowest = -std::numeric_limits<A>::infinity();
  const CrossEntropyInput& in = args.in;
  Vec<A> tops = splat<A>(kLowest), sums{}, total{};
  row.each([&](const auto& get, const auto&) {
    const Vec<A> z = get(in.z, kLowest);
    tops = z > tops ? z : tops;
  });
  A top = tops[0];
  for (int64_t i = 1; i < kLanes<A>; ++i) top = std::max<A>(top, tops[i]);
  row.each([&](const auto& get, const auto&) {
    sums += exp_below<A>(top - get(in.z, kLowest));
    if (in.smoothing != 0) total += get(in.z, 0);
  });
  const A logsumexp = top + std::log(lanes_total<A>(sums));
  row.of(in.logsumexp) = logsumexp;
  row.of(args.loss) = row.counts() ? logsumexp - row.sharp * row.at(in.z, row.target()) -
                                         row.uniform * lanes_total<A>(total)
                                   : row.factor;
}

template <class T>
void backward(const CrossEntropyBackwardArgs& args, const Row<T>& row) {
  using A = Acc<T>;
  if (!row.counts()) return row.fill(args.dz, row.factor);
  const A g = row.of(args.dloss), logsumexp = row.of(args.in.logsumexp);
  row.each([&](const auto& get, const auto& put) {
    put(args.dz, g * (row.probability(get, logsumexp) - row.uniform));
  });
  const A p = std::exp(row.at(args.in.z, row.target()) - logsumexp);
  static_cast<T*>(args.dz)[row.target()] = narrow<T>(g * (p - row.uniform - row.sharp));
}

template <class T>
void second(const CrossEntropySecondArgs& args, const Row<T>& row) {
  using A = Acc<T>;
  if (!row.counts()) {
    if (args.tloss) row.of(args.tloss) = row.factor;
    if (args.dloss) row.fill(args.dz, row.factor);
    return;
  }
  const A logsumexp = row.of(args.in.logsumexp);
  Vec<A> means{}, total{};
  row.each([&](const auto& get, const auto&) {
    const Vec<A> tz = get(args.tz, 0);
    means += row.probability(get, logsumexp) * tz;
    total += tz;
  });
  const A mean = lanes_total<A>(means), along = row.at(args.tz, row.target());
  if (args.tloss)
    row.of(args.tloss) = mean - row.uniform * lanes_total<A>(total) - row.sharp * along;
  if (!args.dloss) return;
  const A g = row.of(args.dloss), tg = args.tdloss ? row.of(args.tdloss) : A{0};
  row.each([&](const auto& get, const auto& put) {
    const Vec<A> p = row.probability(get, logsumexp);
    put(args.dz, g * p * (get(args.tz, 0) - mean) + tg * (p - row.uniform));
  });
  const A p = std::exp(row.at(args.in.z, row.target()) - logsumexp);
  static_cast<T*>(args.dz)[row.target()] =
      narrow<T>(g * p * (along - mean) + tg * (p - row.uniform - row.sharp));
}

// Calls body(row) for all rows.
template <class Body>
void each_row(const CrossEntropyInput& in, const Parallel& parallel, const Body& body) {
  const int64_t grain = 1 + 4096 / std::max<int64_t>(1, in.classes);
  dispatch(in.dtype, [&](auto zero) {
    parallel(in.rows, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) body(Row<decltype(zero)>{in, i});
    });
  });
}

}  // namespace
}  // namespace cross_entropy

void cross_entropy_forward(const CrossEntropyForwardArgs& args, const Parallel& parallel) {
  cross_entropy::each_row(args.in, parallel,
                          [&](const auto& row) { cross_entropy::forward(args, row); });
}

void cross_entropy_backward(const CrossEntropyBackwardArgs& args, const Parallel& parallel) {
  cross_entropy::each_row(args.in, parallel,
                          [&](const auto& row) { cross_entropy::backward(args, row); });
}

void cross_entropy_second(const CrossEntropySecondArgs& args, const Parallel& parallel) {
  cross_entropy::each_row(args.in, parallel,
                          [&](const auto& row) { cross_entropy::second(args, row); });
}

}  // namespace fastmeta::cpu::FM_ISA
