// Layer and RMS normalisation: derivatives of the backward pass.
#include "cpu/row_norm.h"

namespace fastmeta::cpu::FM_ISA {
namespace row_norm {
namespace {

template <class T>
struct Second {
  using A = Acc<T>;
  const RowNormSecondArgs& args;
  const RowNormInput& in = args.in;
  const int64_t padded = row_norm_padded(in.width);
  Arena<A> arena{9 * padded};
  InputRows<T> x{in.x, in.width, arena}, tx{args.tx, in.width, arena};
  InputRows<T> dy{args.dy, in.width, arena}, tdy{args.tdy, in.width, arena};
  OutputRows<T> ty{args.ty, in.width, arena}, dx{args.dx, in.width, arena};
  A* weight = arena.take(padded);
  A* tweight = arena.take(padded);
  A* tbias = arena.take(padded);

  explicit Second(const RowNormSecondArgs& args_) : args(args_) {}

  void operator()(int64_t group, int64_t chunk, int64_t first, int64_t end) {
    read_weight(in.weight, in.weight_dtype, group, in.width, weight);
    read_weight(args.tweight, in.weight_dtype, group, in.width, tweight);
    read_weight(args.tbias, in.weight_dtype, group, in.width, tbias);
    if (!args.dweight) return tangent(group, first, end);
    const WeightSums<A> totals(args.scratch, chunk, padded);
    args.tdy ? second<true>(group, totals, first, end) : second<false>(group, totals, first, end);
  }

  void tangent(int64_t group, int64_t first, int64_t end) {
    const Stats<A> stats(in, group);
    for (int64_t i = first; i < end; ++i) {
      const int64_t row = group * in.rows + i;
      const A *from = x.at(row), *along = tx.at(row);
      const A mean = stats.mean[i], r = stats.scale[i];
      A sums_of[2];
      row_means(in.width, sums_of, [&](int64_t c, auto& sums) {
        const Vec<A> t = load(along + c);
        sums[0] += t;
        sums[1] += t * ((load(from + c) - mean) * r);
      });
      RowNormMeans<A> means{r, sums_of[0], sums_of[1], 0, 0, 0, 0, 0};
      if (!in.centred) means.uncentre();
      A* to = ty.at(row);
      for (int64_t c = 0; c < padded; c += kLanes<A>) {
        const Vec<A> h = (load(from + c) - mean) * r, th = means.th(load(along + c), h);
        store(to + c, th * load(weight + c) + (h * load(tweight + c) + load(tbias + c)));
      }
      ty.write(row);
    }
  }

  template <bool kAlong>
  void second(int64_t group, const WeightSums<A>& totals, int64_t first, int64_t end) {
    const Stats<A> stats(in, group);
    for (int64_t i = first; i < end; ++i) {
      const int64_t row = group * in.rows + i;
      const A *from = x.at(row), *along = tx.at(row), *upstream = dy.at(row), *change = tdy.at(row);
      const A mean = stats.mean[i], r = stats.scale[i];
      const auto tg_of = [&](int64_t c, Vec<A> d) {
        const Vec<A> tg = d * load(tweight + c);
        if constexpr (kAlong) return tg + load(change + c) * load(weight + c);
        return tg;
      };
      A s[7];
      row_means(in.width, s, [&](int64_t c, auto& sums) {
        const Vec<A> h = (load(from + c) - mean) * r, t = load(along + c), d = load(upstream + c);
        const Vec<A> g = d * load(weight + c), tg = tg_of(c, d);
        sums[0] += t;
        sums[1] += t * h;
        sums[2] += g;
        sums[3] += g * h;
        sums[4] += g * t;
        sums[5] += tg;
        sums[6] += tg * h;
      });
      RowNormMeans<A> means{r, s[0], s[1], s[2], s[3], s[4], s[5], s[6]};
      if (!in.centred) means.uncentre();
      A *to_y = ty.at(row), *to_x = dx.at(row);
      for (int64_t c = 0; c < padded; c += kLanes<A>) {
        const Vec<A> h = (load(from + c) - mean) * r, d = load(upstream + c), w = load(weight + c);
        const Vec<A> th = means.th(load(along + c), h);
        store(to_y + c, th * w + (h * load(tweight + c) + load(tbias + c)));
        store(to_x + c, means.tdx(d * w, tg_of(c, d), h, th));
        if constexpr (kAlong) {
          const Vec<A> td = load(change + c);
          totals.add(c, td * h + d * th, td);
        } else {
          totals.add(c, d * th, Vec<A>{});
        }
      }
      ty.write(row);
      dx.write(row);
    }
  }
};

}  // namespace
}  // namespace row_norm

void row_norm_second(const RowNormSecondArgs& args, const Parallel& parallel) {
  dispatch(args.in.dtype, [&](auto zero) {
    using T = decltype(zero);
    row_norm::each_chunk(args.in, parallel, [&] { return row_norm::Second<T>(args); });
    if (args.dweight)
      row_norm::finish_weights<Acc<T>>(args.in, args.scratch, args.dweight, args.dbias, parallel);
  });
}

}  // namespace fastmeta::cpu::FM_ISA
