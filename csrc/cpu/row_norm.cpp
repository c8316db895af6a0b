// Layer and RMS normalisation: the forward and the backward pass.
#include "cpu/row_norm.h"

namespace fastmeta::cpu::FM_ISA {
namespace row_norm {
namespace {

template <class T>
struct Forward {
  using A = Acc<T>;
  const RowNormForwardArgs& args;
  const RowNormInput& in = args.in;
  const int64_t padded = row_norm_padded(in.width);
  Arena<A> arena{5 * padded};
  InputRows<T> x{in.x, in.width, arena};
  OutputRows<T> y{args.y, in.width, arena};
  A* weight = arena.take(padded);
  A* bias = arena.take(padded);
  A* h = arena.take(padded);

  explicit Forward(const RowNormForwardArgs& args_) : args(args_) {}

  void operator()(int64_t group, int64_t, int64_t first, int64_t end) {
    read_weight(in.weight, in.weight_dtype, group, in.width, weight);
    read_weight(args.bias, in.weight_dtype, group, in.width, bias);
    const Stats<A> stats(in, group);
    for (int64_t i = first; i < end; ++i) {
      const int64_t row = group * in.rows + i;
      const A* from = x.at(row);
      A mean[1] = {}, square[1];
      if (in.centred)
        row_means(in.width, mean, [&](int64_t c, auto& sums) { sums[0] += load(from + c); });
      if (in.centred) {
        for (int64_t c = 0; c < padded; c += kLanes<A>) store(h + c, load(from + c) - mean[0]);
        for (int64_t c = in.width; c < padded; ++c) h[c] = 0;
        from = h;
      }
      row_means(in.width, square, [&](int64_t c, auto& sums) {
        const Vec<A> d = load(from + c);
        sums[0] += d * d;
      });
      const A r = 1 / std::sqrt(square[0] + static_cast<A>(args.eps));
      A* to = y.at(row);
      for (int64_t c = 0; c < padded; c += kLanes<A>)
        store(to + c, load(from + c) * r * load(weight + c) + load(bias + c));
      y.write(row);
      stats.mean[i] = mean[0];
      stats.scale[i] = r;
    }
  }
};

template <class T>
struct Backward {
  using A = Acc<T>;
  const RowNormBackwardArgs& args;
  const RowNormInput& in = args.in;
  const int64_t padded = row_norm_padded(in.width);
  Arena<A> arena{4 * padded};
  InputRows<T> x{in.x, in.width, arena}, dy{args.dy, in.width, arena};
  OutputRows<T> dx{args.dx, in.width, arena};
  A* weight = arena.take(padded);

  explicit Backward(const RowNormBackwardArgs& args_) : args(args_) {}

  void operator()(int64_t group, int64_t chunk, int64_t first, int64_t end) {
    read_weight(in.weight, in.weight_dtype, group, in.width, weight);
    const Stats<A> stats(in, group);
    const WeightSums<A> totals(args.scratch, chunk, padded);
    for (int64_t i = first; i < end; ++i) {
      const int64_t row = group * in.rows + i;
      const A *from = x.at(row), *upstream = dy.at(row);
      const A mean = stats.mean[i], r = stats.scale[i];
      A means[2];  // of g and g h
      row_means(in.width, means, [&](int64_t c, auto& sums) {
        const Vec<A> d = load(upstream + c), h = (load(from + c) - mean) * r;
        const Vec<A> g = d * load(weight + c);
        sums[0] += g;
        sums[1] += g * h;
        totals.add(c, d * h, d);
      });
      if (!in.centred) means[0] = 0;
      A* to = dx.at(row);
      for (int64_t c = 0; c < padded; c += kLanes<A>) {
        const Vec<A> h = (load(from + c) - mean) * r, g = load(upstream + c) * load(weight + c);
        store(to + c, r * (g - means[0] - h * means[1]));
      }
      dx.write(row);
    }
  }
};

}  // namespace
}  // namespace row_norm

void row_norm_forward(const RowNormForwardArgs& args, const Parallel& parallel) {
  dispatch(args.in.dtype, [&](auto zero) {
    using T = decltype(zero);
    row_norm::each_chunk(args.in, parallel, [&] { return row_norm::Forward<T>(args); });
  });
}

void row_norm_backward(const RowNormBackwardArgs& args, const Parallel& parallel) {
  dispatch(args.in.dtype, [&](auto zero) {
    using T = decltype(zero);
    row_norm::each_chunk(args.in, parallel, [&] { return row_norm::Backward<T>(args); });
    row_norm::finish_weights<Acc<T>>(args.in, args.scratch, args.dweight, args.dbias, parallel);
  });
}

}  // namespace fastmeta::cpu::FM_ISA
