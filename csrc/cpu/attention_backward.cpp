// Attention: its backward pass, the tangent of its output, and that of its gradients.
#include "cpu/attention_tangent.h"
#include "cpu/kernels.h"

namespace fastmeta::cpu::FM_ISA {
namespace attention {
namespace {

// The gradients of keys and values: partial sums over chunks of queries, added in order.
template <class T>
struct KeySums {
  using A = Acc<T>;
  const AttentionInput& in;
  const int64_t chunks = attention_chunks(in);
  const int64_t heads = in.batch * in.kv_heads;
  const int64_t width = attention_padded(in.width), value_width = attention_padded(in.value_width);
  A *k, *v;

  KeySums(const AttentionInput& in_, A* scratch)
      : in(in_), k(scratch), v(scratch + chunks * heads * in.keys * width) {}

  A* keys(int64_t chunk, int64_t head) const {
    return k + (chunk * heads + head) * in.keys * width;
  }
  A* values(int64_t chunk, int64_t head) const {
    return v + (chunk * heads + head) * in.keys * value_width;
  }
  void clear(int64_t chunk, int64_t head) const {
    std::fill_n(keys(chunk, head), in.keys * width, A{0});
    std::fill_n(values(chunk, head), in.keys * value_width, A{0});
  }

  void write(void* dk, void* dv, const Parallel& parallel) const {
    const int64_t rows = heads * in.keys;
    parallel(rows, 256, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        add(k + row * width, rows * width, width);
        add(v + row * value_width, rows * value_width, value_width);
      }
      write_rows<T>(k + begin * width, width, end - begin, in.width, A{1},
                    static_cast<T*>(dk) + begin * in.width);
      write_rows<T>(v + begin * value_width, value_width, end - begin, in.value_width, A{1},
                    static_cast<T*>(dv) + begin * in.value_width);
    });
  }
  void add(A* first, int64_t step, int64_t count) const {
    if (chunks == 1) return;
    for (int64_t c = 0; c < count; c += kLanes<A>) {
      Vec<A> sum = load(first + c);
      for (int64_t chunk = 1; chunk < chunks; ++chunk) sum += load(first + chunk * step + c);
      store(first + c, sum);
    }
  }
};

// Calls body(tile, dk, dv) for all tiles of queries that add to the partial sums dk and dv: one
// thread per chunk and head of keys.
template <class T, class Make>
void each_chunk(const KeySums<T>& sums, const Parallel& parallel, const Make& make) {
  const AttentionInput& in = sums.in;
  const int64_t group = in.heads / std::max<int64_t>(in.kv_heads, 1),
                items = sums.heads * sums.chunks;
  parallel.dynamic(items, 1, [&](const auto& next) {
    auto body = make();
    for (int64_t item = next(); item < items; item = next()) {
      const int64_t kv = item / sums.chunks, chunk = item % sums.chunks;
      sums.clear(chunk, kv);
      for (int64_t g = 0; g < group; ++g)
        for (int64_t i0 = chunk * kRows; i0 < in.queries; i0 += sums.chunks * kRows)
          body(Tile<T>{in, kv / in.kv_heads, kv % in.kv_heads * group + g, i0,
                       std::min(kRows, in.queries - i0)},
               sums.keys(chunk, kv), sums.values(chunk, kv));
    }
  });
}

template <class T>
struct Backward {
  using A = Acc<T>;
  const AttentionBackwardArgs& args;
  const AttentionInput& in = args.in;
  const int64_t width = attention_padded(in.width), row = attention_padded(in.value_width);
  Arena<A> arena{QueryRows<T>::size(in.width) + QueryRows<T>::size(in.value_width) +
                 kKeys * (width + row) + kRows * (width + row + 2 * kKeys + 1) + Stats<A>::size()};
  QueryRows<T> q{in.width, arena}, dout{in.value_width, arena};
  A* key_rows = arena.take(kKeys * width);
  A* value_rows = arena.take(kKeys * row);
  A* dq = arena.take(kRows * width);
  A* out = arena.take(kRows * row);
  A* p = arena.take(kRows * kKeys);
  A* ds = arena.take(kRows * kKeys);
  A* d = arena.take(kRows);
  Stats<A> stats{arena};

  explicit Backward(const AttentionBackwardArgs& args_) : args(args_) {}

  void operator()(const Tile<T>& queries, A* dk, A* dv) {
    const int64_t b = queries.batch, h = queries.head, kv = queries.kv_head();
    q.read(Rows<T>(in.q, b, h), queries.i0, queries.rows, static_cast<A>(in.scale));
    dout.read(Rows<T>(args.dout, b, h), queries.i0, queries.rows, A{1});
    copy_rows(Rows<T>(args.out, b, h), queries.i0, queries.rows, in.value_width, A{1}, out, row);
    std::fill_n(d, kRows, A{0});
    dot_rows(dout.rows, out, row, queries.rows, d);
    stats.read(queries);
    const Rows<T> k(in.k, b, kv), v(in.v, b, kv);
    std::fill_n(dq, kRows * width, A{0});
    each_key_tile(queries, [&](const Tile<T>& tile) {
      const Block<A> key = rows_of(k, tile.j0, tile.keys, in.width, key_rows);
      const Block<A> value = rows_of(v, tile.j0, tile.keys, in.value_width, value_rows);
      tile.scores(key, q, p);
      tile.template across<1>(ds, {tile.product(value, dout)});
      each_query<A>(tile.rows, [&](int64_t i) FM_INLINE {
        const Softmax<A> softmax = stats.at(i);
        const Vec<A> mean = load(d + i);
        for (int64_t j = i; j < i + tile.keys * kRows; j += kRows) {
          const Vec<A> prob = softmax(p + j);
          store(p + j, prob);
          store(ds + j, prob * (load(ds + j) - mean));
        }
      });
      multiply<A, 1>(dq, width, tile.rows, in.width, {dq, width, 1}, {tile.with_keys(ds, key)});
      A *to_k = dk + tile.j0 * width, *to_v = dv + tile.j0 * row;
      multiply<A, 1>(to_k, width, tile.keys, in.width, {to_k, width, 1},
                     {tile.with_queries(ds, q)});
      multiply<A, 1>(to_v, row, tile.keys, in.value_width, {to_v, row, 1},
                     {tile.with_queries(p, dout)});
    });
    write_rows<T>(dq, width, queries.rows, in.width, static_cast<A>(in.scale),
                  static_cast<T*>(args.dq) + queries.stat(0, 1) * in.width);
  }
};

template <class T>
void backward(const AttentionBackwardArgs& args, const Parallel& parallel) {
  const KeySums<T> sums(args.in, static_cast<Acc<T>*>(args.scratch));
  each_chunk<T>(sums, parallel, [&] { return Backward<T>(args); });
  sums.write(args.dk, args.dv, parallel);
}

template <class T>
void tangent(const AttentionTangentArgs& args, const Parallel& parallel) {
  each_query_tile<T>(args.in, parallel, [&] { return Tangent<T>(args, nullptr); });
}

// kAlong: whether there is a tangent of dout.
template <class T, bool kAlong>
struct Gradients {
  using A = Acc<T>;
  const AttentionSecondArgs& args;
  const A* rows;  // r, D and D. of all queries
  const AttentionInput& in = args.tangent.in;
  const int64_t width = attention_padded(in.width), row = attention_padded(in.value_width);
  Arena<A> arena{2 * QueryRows<T>::size(in.width) + 2 * QueryRows<T>::size(in.value_width) +
                 2 * kKeys * (width + row) + kRows * (width + 4 * kKeys + 3) + Stats<A>::size()};
  QueryRows<T> q{in.width, arena}, tq{in.width, arena};
  QueryRows<T> dout{in.value_width, arena}, tdout{in.value_width, arena};
  A* buffers[4] = {arena.take(kKeys * width), arena.take(kKeys* width), arena.take(kKeys* row),
                   arena.take(kKeys* row)};
  A* dq = arena.take(kRows * width);
  A* p = arena.take(kRows * kKeys);
  A* tp = arena.take(kRows * kKeys);
  A* ds = arena.take(kRows * kKeys);
  A* tds = arena.take(kRows * kKeys);
  A* r = arena.take(kRows);
  A* d = arena.take(kRows);
  A* td = arena.take(kRows);
  Stats<A> stats{arena};

  Gradients(const AttentionSecondArgs& args_, const A* rows_) : args(args_), rows(rows_) {}

  void read(const Tile<T>& queries) {
    const int64_t b = queries.batch, h = queries.head;
    const A scale = static_cast<A>(in.scale);
    q.read(Rows<T>(in.q, b, h), queries.i0, queries.rows, scale);
    tq.read(Rows<T>(args.tangent.tq, b, h), queries.i0, queries.rows, scale);
    dout.read(Rows<T>(args.dout, b, h), queries.i0, queries.rows, A{1});
    if constexpr (kAlong) tdout.read(Rows<T>(args.tdout, b, h), queries.i0, queries.rows, A{1});
    stats.read(queries);
    read_stats(rows + queries.stat(0, kAttentionSecondRows), queries.rows, r);
    read_stats(rows + queries.stat(1, kAttentionSecondRows), queries.rows, d);
    read_stats(rows + queries.stat(2, kAttentionSecondRows), queries.rows, td);
  }

  void operator()(const Tile<T>& queries, A* dk, A* dv) {
    const int64_t b = queries.batch, kv = queries.kv_head();
    read(queries);
    const Rows<T> k(in.k, b, kv), tk(args.tangent.tk, b, kv);
    const Rows<T> v(in.v, b, kv), tv(args.tangent.tv, b, kv);
    std::fill_n(dq, kRows * width, A{0});
    each_key_tile(queries, [&](const Tile<T>& tile) {
      const Block<A> key = rows_of(k, tile.j0, tile.keys, in.width, buffers[0]);
      const Block<A> tkey = rows_of(tk, tile.j0, tile.keys, in.width, buffers[1]);
      const Block<A> value = rows_of(v, tile.j0, tile.keys, in.value_width, buffers[2]);
      const Block<A> tvalue = rows_of(tv, tile.j0, tile.keys, in.value_width, buffers[3]);
      tile.scores(key, q, p);
      tile.template across<2>(tp, {tile.product(key, tq), tile.product(tkey, q)});
      tile.template across<1>(ds, {tile.product(value, dout)});
      if constexpr (kAlong)
        tile.template across<2>(tds, {tile.product(tvalue, dout), tile.product(value, tdout)});
      else
        tile.template across<1>(tds, {tile.product(tvalue, dout)});
      differentiate(tile);
      multiply<A, 2>(dq, width, tile.rows, in.width, {dq, width, 1},
                     {tile.with_keys(tds, key), tile.with_keys(ds, tkey)});
      A *to_k = dk + tile.j0 * width, *to_v = dv + tile.j0 * row;
      multiply<A, 2>(to_k, width, tile.keys, in.width, {to_k, width, 1},
                     {tile.with_queries(tds, q), tile.with_queries(ds, tq)});
      if constexpr (kAlong)
        multiply<A, 2>(to_v, row, tile.keys, in.value_width, {to_v, row, 1},
                       {tile.with_queries(tp, dout), tile.with_queries(p, tdout)});
      else
        multiply<A, 1>(to_v, row, tile.keys, in.value_width, {to_v, row, 1},
                       {tile.with_queries(tp, dout)});
    });
    write_rows<T>(dq, width, queries.rows, in.width, static_cast<A>(in.scale),
                  static_cast<T*>(args.dq) + queries.stat(0, 1) * in.width);
  }

  // From S, S., dP and dP. to P, P., dS and dS. in their places.
  void differentiate(const Tile<T>& tile) {
    each_query<A>(tile.rows, [&](int64_t i) FM_INLINE {
      const Softmax<A> softmax = stats.at(i);
      const Vec<A> shift = load(r + i), mean = load(d + i), tmean = load(td + i);
      for (int64_t j = i; j < i + tile.keys * kRows; j += kRows) {
        const Vec<A> prob = softmax(p + j);
        const Vec<A> tprob = prob * (load(tp + j) - shift);
        const Vec<A> slope = load(ds + j) - mean;
        store(tds + j, tprob * slope + prob * (load(tds + j) - tmean));
        store(ds + j, prob * slope);
        store(tp + j, tprob);
        if constexpr (kAlong) store(p + j, prob);
      }
    });
  }
};

template <class T>
void second(const AttentionSecondArgs& args, const Parallel& parallel) {
  using A = Acc<T>;
  const AttentionInput& in = args.tangent.in;
  A* rows = static_cast<A*>(args.scratch);
  const Second own{args.dout, args.tdout, rows};
  each_query_tile<T>(in, parallel, [&] { return Tangent<T>(args.tangent, &own); });
  const KeySums<T> sums(in, rows + in.batch * in.heads * kAttentionSecondRows * in.queries);
  if (args.tdout.data)
    each_chunk<T>(sums, parallel, [&] { return Gradients<T, true>(args, rows); });
  else
    each_chunk<T>(sums, parallel, [&] { return Gradients<T, false>(args, rows); });
  sums.write(args.dk, args.dv, parallel);
}

}  // namespace
}  // namespace attention

FM_ATTENTION(backward, AttentionBackwardArgs, args.in)
FM_ATTENTION(tangent, AttentionTangentArgs, args.in)
FM_ATTENTION(second, AttentionSecondArgs, args.tangent.in)

}  // namespace fastmeta::cpu::FM_ISA
