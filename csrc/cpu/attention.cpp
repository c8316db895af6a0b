// Attention: its forward pass.
#include "cpu/attention.h"

#include "cpu/kernels.h"

namespace fastmeta::cpu::FM_ISA {
namespace attention {
namespace {

// The running softmax (maximum and sum per query) and weighted sum of values of a tile of queries.
template <class T>
struct Forward {
  using A = Acc<T>;
  const AttentionForwardArgs& args;
  const AttentionInput& in = args.in;
  const int64_t row = attention_padded(in.value_width);
  Arena<A> arena{QueryRows<T>::size(in.width) + kKeys * (attention_padded(in.width) + row) +
                 kRows * (row + kKeys + 3)};
  QueryRows<T> q{in.width, arena};
  A* key_rows = arena.take(kKeys * attention_padded(in.width));
  A* value_rows = arena.take(kKeys * row);
  A* out = arena.take(kRows * row);
  A* s = arena.take(kRows * kKeys);
  A* max = arena.take(kRows);
  A* sum = arena.take(kRows);
  A* shrink = arena.take(kRows);

  explicit Forward(const AttentionForwardArgs& args_) : args(args_) {}

  void operator()(const Tile<T>& queries) {
    q.read(Rows<T>(in.q, queries.batch, queries.head), queries.i0, queries.rows,
           static_cast<A>(in.scale));
    const Rows<T> keys(in.k, queries.batch, queries.kv_head());
    const Rows<T> values(in.v, queries.batch, queries.kv_head());
    std::fill_n(out, kRows * row, A{0});
    std::fill_n(sum, kRows, A{0});
    std::fill_n(max, kRows, -kInfinity<A>);
    each_key_tile(queries, [&](const Tile<T>& tile) {
      tile.scores(rows_of(keys, tile.j0, tile.keys, in.width, key_rows), q, s);
      softmax(tile);
      for (int64_t i = 0; i < tile.rows; ++i)
        if (shrink[i] != 1)
          for (int64_t c = 0; c < row; c += kLanes<A>)
            store(out + i * row + c, load(out + i * row + c) * shrink[i]);
      multiply<A, 1>(
          out, row, tile.rows, in.value_width, {out, row, 1},
          {tile.with_keys(s, rows_of(values, tile.j0, tile.keys, in.value_width, value_rows))});
    });
    write(queries);
  }

  // Scores become exponentials relative to the new maximum.
  void softmax(const Tile<T>& tile) {
    each_query<A>(tile.rows, [&](int64_t i) FM_INLINE {
      const Vec<A> old = load(max + i);
      Vec<A> top = old, total{};
      for (int64_t j = 0; j < tile.keys; ++j) top = larger<A>(load(s + j * kRows + i), top);
      // No key seen so far: any finite number will do.
      const Vec<A> base = top == splat<A>(-kInfinity<A>) ? Vec<A>{} : top;
      for (int64_t j = 0; j < tile.keys; ++j) {
        const Vec<A> p = exp_of<A>(load(s + j * kRows + i) - base);
        total += p;
        store(s + j * kRows + i, p);
      }
      const Vec<A> factor = exp_of<A>(old - base);
      store(max + i, top);
      store(shrink + i, factor);
      store(sum + i, load(sum + i) * factor + total);
    });
  }

  void write(const Tile<T>& queries) {
    A* stats = static_cast<A*>(in.stats);
    T* to = static_cast<T*>(args.out) + queries.stat(0, 1) * in.value_width;
    for (int64_t i = 0; i < queries.rows; ++i) {
      const A inverse = sum[i] == 0 ? 0 : 1 / sum[i];
      stats[queries.stat(0, 2) + i] = sum[i] == 0 ? 0 : max[i];
      stats[queries.stat(1, 2) + i] = inverse;
      write_rows<T>(out + i * row, row, 1, in.value_width, inverse, to + i * in.value_width);
    }
  }
};

template <class T>
void forward(const AttentionForwardArgs& args, const Parallel& parallel) {
  each_query_tile<T>(args.in, parallel, [&] { return Forward<T>(args); });
}

}  // namespace
}  // namespace attention

FM_ATTENTION(forward, AttentionForwardArgs, args.in)

}  // namespace fastmeta::cpu::FM_ISA
