// Attention: the tangent of its output, and the row statistics of second derivatives.
#pragma once

#include "cpu/attention.h"

namespace fastmeta::cpu::FM_ISA {
namespace attention {

// Probabilities from scores.
template <class A>
struct Softmax {
  Vec<A> max, inverse;
  Vec<A> operator()(const A* score) const { return exp_of<A>(load(score) - max) * inverse; }
};

// The statistics of a tile's queries: max and 1 / sum.
template <class A>
struct Stats {
  A *max, *inverse;

  static constexpr int64_t size() { return 2 * kRows; }
  explicit Stats(Arena<A>& arena) : max(arena.take(kRows)), inverse(arena.take(kRows)) {}
  template <class T>
  void read(const Tile<T>& tile) {
    const A* stats = static_cast<const A*>(tile.in.stats);
    read_stats(stats + tile.stat(0, 2), tile.rows, max);
    read_stats(stats + tile.stat(1, 2), tile.rows, inverse);
  }
  Softmax<A> at(int64_t i) const { return {load(max + i), load(inverse + i)}; }
};

// Where second derivatives keep r, D and D. of all queries; null for the tangent alone.
struct Second {
  Heads dout;
  Heads tdout;
  void* rows;
};

template <class T>
struct Tangent {
  using A = Acc<T>;
  const AttentionTangentArgs& args;
  const Second* second;
  const AttentionInput& in = args.in;
  const int64_t width = attention_padded(in.width), row = attention_padded(in.value_width);
  Arena<A> arena{2 * QueryRows<T>::size(in.width) + 2 * kKeys * (width + row) + 4 * kRows * row +
                 2 * kRows * kKeys + Stats<A>::size() + 3 * kRows};
  QueryRows<T> q{in.width, arena}, tq{in.width, arena};
  A* buffers[4] = {arena.take(kKeys * width), arena.take(kKeys* width), arena.take(kKeys* row),
                   arena.take(kKeys* row)};
  A* tout = arena.take(kRows * row);
  A* others[3] = {arena.take(kRows * row), arena.take(kRows* row), arena.take(kRows* row)};
  A* p = arena.take(kRows * kKeys);
  A* t = arena.take(kRows * kKeys);
  Stats<A> stats{arena};
  A* r = arena.take(kRows);
  A* d = arena.take(kRows);
  A* td = arena.take(kRows);

  Tangent(const AttentionTangentArgs& args_, const Second* second_)
      : args(args_), second(second_) {}

  void operator()(const Tile<T>& queries) {
    const int64_t b = queries.batch, h = queries.head, kv = queries.kv_head();
    const A scale = static_cast<A>(in.scale);
    q.read(Rows<T>(in.q, b, h), queries.i0, queries.rows, scale);
    tq.read(Rows<T>(args.tq, b, h), queries.i0, queries.rows, scale);
    stats.read(queries);
    const Rows<T> k(in.k, b, kv), tk(args.tk, b, kv), v(in.v, b, kv), tv(args.tv, b, kv);
    std::fill_n(tout, kRows * row, A{0});
    std::fill_n(r, kRows, A{0});
    each_key_tile(queries, [&](const Tile<T>& tile) {
      const Block<A> key = rows_of(k, tile.j0, tile.keys, in.width, buffers[0]);
      const Block<A> tkey = rows_of(tk, tile.j0, tile.keys, in.width, buffers[1]);
      tile.scores(key, q, p);
      tile.template across<2>(t, {tile.product(key, tq), tile.product(tkey, q)});
      each_query<A>(tile.rows, [&](int64_t i) FM_INLINE {
        const Softmax<A> softmax = stats.at(i);
        Vec<A> total = load(r + i);
        for (int64_t j = i; j < i + tile.keys * kRows; j += kRows) {
          const Vec<A> prob = softmax(p + j), change = prob * load(t + j);
          total += change;
          store(p + j, prob);
          store(t + j, change);
        }
        store(r + i, total);
      });
      const Block<A> value = rows_of(v, tile.j0, tile.keys, in.value_width, buffers[2]);
      const Block<A> tvalue = rows_of(tv, tile.j0, tile.keys, in.value_width, buffers[3]);
      multiply<A, 2>(tout, row, tile.rows, in.value_width, {tout, row, 1},
                     {tile.with_keys(t, value), tile.with_keys(p, tvalue)});
    });
    write(queries);
  }

  void write(const Tile<T>& queries) {
    const int64_t rows = queries.rows;
    const auto read = [&](const Heads& heads, A* to) {
      copy_rows(Rows<T>(heads, queries.batch, queries.head), queries.i0, rows, in.value_width, A{1},
                to, row);
    };
    A *out = others[0], *dout = others[1], *tdout = others[2];
    read(args.out, out);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t c = i * row; c < (i + 1) * row; c += kLanes<A>)
        store(tout + c, load(tout + c) - load(out + c) * r[i]);
    if (args.tout)
      write_rows<T>(tout, row, rows, in.value_width, A{1},
                    static_cast<T*>(args.tout) + queries.stat(0, 1) * in.value_width);
    if (!second) return;
    std::fill_n(d, kRows, A{0});
    std::fill_n(td, kRows, A{0});
    read(second->dout, dout);
    dot_rows(dout, out, row, rows, d);
    dot_rows(dout, tout, row, rows, td);
    if (second->tdout.data) {
      read(second->tdout, tdout);
      dot_rows(tdout, out, row, rows, td);
    }
    A* to = static_cast<A*>(second->rows);
    std::copy_n(r, rows, to + queries.stat(0, kAttentionSecondRows));
    std::copy_n(d, rows, to + queries.stat(1, kAttentionSecondRows));
    std::copy_n(td, rows, to + queries.stat(2, kAttentionSecondRows));
  }
};

}  // namespace attention
}  // namespace fastmeta::cpu::FM_ISA
