// Layer normalisation and RMS normalisation. Rows are read and written as whole vectors of the
// accumulation dtype, padded with zeros.
#include "fastmeta/row_norm.h"

#include <type_traits>

#include "cpu/arena.h"
#include "cpu/kernels.h"
#include "cpu/vectors.h"

namespace fastmeta::cpu::FM_ISA {
namespace row_norm {
namespace {

// `from`, and zeros up to a whole number of vectors.
template <class T>
void widen_row(const T* from, int64_t width, Acc<T>* to) {
  using A = Acc<T>;
  int64_t c = 0;
  for (; c + kLanes<A> <= width; c += kLanes<A>) store(to + c, load(from + c));
  for (; c < width; ++c) to[c] = widen(from[c]);
  for (; c < row_norm_padded(width); ++c) to[c] = 0;
}

template <class T>
void narrow_row(const Acc<T>* from, int64_t width, T* to) {
  using A = Acc<T>;
  int64_t c = 0;
  for (; c + kLanes<A> <= width; c += kLanes<A>) store(to + c, load(from + c));
  for (; c < width; ++c) to[c] = narrow<T>(from[c]);
}

// Whether rows are whole vectors of the accumulation dtype in memory.
template <class T>
bool direct(int64_t width) {
  return std::is_same_v<T, Acc<T>> && width % 16 == 0;
}

// Rows of a tensor (groups, rows, width), or of none.
template <class T>
struct InputRows {
  using A = Acc<T>;
  const T* data;
  int64_t width;
  A* buffer;

  InputRows(const void* data_, int64_t width_, Arena<A>& arena)
      : data(static_cast<const T*>(data_)),
        width(width_),
        buffer(arena.take(row_norm_padded(width_))) {}
  const A* at(int64_t row) const {
    if (!data) return nullptr;
    if constexpr (std::is_same_v<T, A>)
      if (direct<T>(width)) return data + row * width;
    widen_row(data + row * width, width, buffer);
    return buffer;
  }
};

template <class T>
struct OutputRows {
  using A = Acc<T>;
  T* data;
  int64_t width;
  A* buffer;

  OutputRows(void* data_, int64_t width_, Arena<A>& arena)
      : data(static_cast<T*>(data_)), width(width_), buffer(arena.take(row_norm_padded(width_))) {}
  A* at(int64_t row) const {
    if constexpr (std::is_same_v<T, A>)
      if (direct<T>(width)) return data + row * width;
    return buffer;
  }
  void write(int64_t row) const {
    if (!direct<T>(width)) narrow_row<T>(buffer, width, data + row * width);
  }
};

// A row of (groups, width) weights in the accumulation dtype.
template <class A>
void read_weight(const void* from, DType dtype, int64_t group, int64_t width, A* to) {
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    if constexpr (std::is_same_v<Acc<T>, A>)
      widen_row(static_cast<const T*>(from) + group * width, width, to);
  });
}

// The means over a row of the kSums values that add(column, sums) adds up in vectors.
template <class A, int kSums, class Add>
void row_means(int64_t width, A (&means)[kSums], const Add& add) {
  Vec<A> even[kSums] = {}, odd[kSums] = {};
  // Padded rows hold an even number of vectors, except with AVX-512 where there is one more.
  const int64_t padded = row_norm_padded(width);
  int64_t c = 0;
  for (; c + 2 * kLanes<A> <= padded; c += 2 * kLanes<A>) {
    add(c, even);
    add(c + kLanes<A>, odd);
  }
  if (c < padded) add(c, even);
  for (int k = 0; k < kSums; ++k)
    means[k] = lanes_total<A>(even[k] + odd[k]) / static_cast<A>(width);
}

// The statistics of a group's rows.
template <class A>
struct Stats {
  A *mean, *scale;
  Stats(const RowNormInput& in, int64_t group)
      : mean(static_cast<A*>(in.stats) + group * 2 * in.rows), scale(mean + in.rows) {}
};

// Calls worker(group, first, end) for all chunks of rows; make() makes the worker of a thread.
template <class Make>
void each_chunk(const RowNormInput& in, const Parallel& parallel, const Make& make) {
  const int64_t chunks = row_norm_chunks(in.rows), size = row_norm_chunk(in.rows);
  const int64_t grain = std::max<int64_t>(1, 8192 / std::max<int64_t>(1, size * in.width));
  parallel(in.groups * chunks, grain, [&](int64_t begin, int64_t end) {
    auto worker = make();
    for (int64_t k = begin; k < end; ++k) {
      const int64_t first = k % chunks * size;
      worker(k / chunks, k, first, std::min(first + size, in.rows));
    }
  });
}

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

// The sums of weight gradients of a chunk, as (2, padded) of the scratch.
template <class A>
struct WeightSums {
  A *weight, *bias;
  WeightSums(void* scratch, int64_t chunk, int64_t padded)
      : weight(static_cast<A*>(scratch) + chunk * 2 * padded), bias(weight + padded) {
    std::fill_n(weight, 2 * padded, A{0});
  }
  void add(int64_t c, Vec<A> dw, Vec<A> db) const {
    store(weight + c, load(weight + c) + dw);
    store(bias + c, load(bias + c) + db);
  }
};

// dweight and dbias, from the sums of the chunks.
template <class A>
void finish_weights(const RowNormInput& in, const void* scratch, void* dweight, void* dbias,
                    const Parallel& parallel) {
  const int64_t chunks = row_norm_chunks(in.rows), padded = row_norm_padded(in.width);
  dispatch(in.weight_dtype, [&](auto zero) {
    using W = decltype(zero);
    if constexpr (std::is_same_v<Acc<W>, A>)
      parallel(in.groups * in.width, 1024, [&](int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; ++k) {
          const int64_t group = k / in.width, c = k % in.width;
          const A* from = static_cast<const A*>(scratch) + group * chunks * 2 * padded + c;
          double weight = 0, bias = 0;
          for (int64_t chunk = 0; chunk < chunks; ++chunk, from += 2 * padded) {
            weight += static_cast<double>(from[0]);
            bias += static_cast<double>(from[padded]);
          }
          static_cast<W*>(dweight)[k] = narrow<W>(static_cast<A>(weight));
          static_cast<W*>(dbias)[k] = narrow<W>(static_cast<A>(bias));
        }
      });
  });
}

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

void row_norm_second(const RowNormSecondArgs& args, const Parallel& parallel) {
  dispatch(args.in.dtype, [&](auto zero) {
    using T = decltype(zero);
    row_norm::each_chunk(args.in, parallel, [&] { return row_norm::Second<T>(args); });
    if (args.dweight)
      row_norm::finish_weights<Acc<T>>(args.in, args.scratch, args.dweight, args.dbias, parallel);
  });
}

}  // namespace fastmeta::cpu::FM_ISA
