// Attention: tangents and gradients, of first and second order. Queries and keys have kernels of
// their own, so that no block adds to the sums of another.
#pragma once

#include "cuda/attention.cuh"

namespace fastmeta::cuda {

// Of a block's two rows of queries: a statistic, or zero beyond the last one.
template <class T>
__device__ Acc<T> row_stat(const AttentionTile<T>& tile, const void* rows, int k, int64_t count,
                           int a) {
  const int64_t i = tile.query(a);
  return i < tile.in.queries ? static_cast<const Acc<T>*>(rows)[tile.stat(k, count) + i] : 0;
}

// The tangents of scores, or of dP: x. k' + x k.' of two factors.
template <class T>
__device__ Quad<Acc<T>> tangent_product(const AttentionTile<T>& tile, const HeadRows<T>& x,
                                        const HeadRows<T>& tk, const HeadRows<T>& tx,
                                        const HeadRows<T>& k, int64_t width) {
  Quad<Acc<T>> sum;
  tile.product(x, tk, width, sum);
  if (tx.data) tile.product(tx, k, width, sum);
  return sum;
}

template <class T>
__device__ Quad<Acc<T>> score_tangent(const AttentionTile<T>& tile,
                                      const AttentionTangentArgs& args) {
  const AttentionInput& in = args.in;
  const Acc<T> scale = static_cast<Acc<T>>(in.scale);
  return tangent_product(tile, tile.queries(in.q, scale), tile.keys(args.tk),
                         tile.queries(args.tq, scale), tile.keys(in.k), in.width);
}

// The tangent of the output, and if `second` has rows, r, D and D. of all queries.
template <class T>
__global__ void __launch_bounds__(kThreads)
    attention_tangent_kernel(AttentionTangentArgs args, Heads dout, Heads tdout, void* rows) {
  using A = Acc<T>;
  __shared__ AttentionShared<A> shared;
  __shared__ SharedTile<A> weights, changes;
  const AttentionInput& in = args.in;
  int64_t first = 0;
  AttentionTile<T> tile = attention_tile<T>(in, shared, in.heads, in.queries, first);
  tile.i0 = first;
  A r[2] = {0, 0};
  OutputSums<A> sum;
  each_key_tile(tile, [&] {
    const Quad<A> p = tile.probabilities();
    Quad<A> t = score_tangent(tile, args);
    for (int a = 0; a < 2; ++a)
      for (int b = 0; b < 2; ++b) {
        t(a, b) *= p.v[a][b];
        r[a] += t(a, b);
      }
    __syncthreads();
    tile.store(p, weights);
    tile.store(t, changes);
    tile.template accumulate<false>(changes, tile.keys(in.v), tile.j0, in.value_width, sum);
    tile.template accumulate<false>(weights, tile.keys(args.tv), tile.j0, in.value_width, sum);
  });
  const HeadRows<T> out = tile.queries(args.out);
  A d[2] = {0, 0}, td[2] = {0, 0};
  for (int a = 0; a < 2; ++a) {
    r[a] = row_sum(r[a]);
    FM_UNROLL(8)
    for (int slice = 0; slice < kAttentionSlices; ++slice) {
      const int64_t i = tile.query(a), c = slice * kAttentionSide + tile.x;
      const A value = out.at(i, c, in.value_width);
      sum.v[slice][a] -= r[a] * value;
      if (!rows) continue;
      const A upstream = tile.queries(dout).at(i, c, in.value_width);
      d[a] += upstream * value;
      td[a] += upstream * sum.v[slice][a];
      if (tdout.data) td[a] += tile.queries(tdout).at(i, c, in.value_width) * value;
    }
    d[a] = row_sum(d[a]);
    td[a] = row_sum(td[a]);
    if (!rows || tile.x || tile.query(a) >= in.queries) continue;
    A* to = static_cast<A*>(rows) + tile.query(a);
    to[tile.stat(0, kAttentionSecondRows)] = r[a];
    to[tile.stat(1, kAttentionSecondRows)] = d[a];
    to[tile.stat(2, kAttentionSecondRows)] = td[a];
  }
  const A one[2] = {1, 1};
  tile.write(sum, one, tile.batch * in.heads + tile.head, tile.i0, in.queries, in.value_width,
             args.tout);
}

// D of all queries.
template <class T>
__global__ void __launch_bounds__(kThreads)
    attention_mean_kernel(AttentionInput in, Heads dout, Heads out, void* rows) {
  const int64_t row = int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (row >= in.batch * in.heads * in.queries) return;
  const int64_t head = row / in.queries, i = row % in.queries;
  const HeadRows<T> g(dout, head / in.heads, head % in.heads, in.queries);
  const HeadRows<T> o(out, head / in.heads, head % in.heads, in.queries);
  Acc<T> sum = 0;
  for (int64_t c = threadIdx.x % kWarp; c < in.value_width; c += kWarp)
    sum += g.at(i, c, in.value_width) * o.at(i, c, in.value_width);
  for (int flip = kWarp / 2; flip > 0; flip /= 2) sum += __shfl_xor_sync(kFullWarp, sum, flip);
  if (threadIdx.x % kWarp == 0) static_cast<Acc<T>*>(rows)[row] = sum;
}

// P, dS and, of second order, their tangents, for the scores of a thread.
template <class A>
struct Slopes {
  Quad<A> p, tp, ds, tds;
};

template <class T, bool kSecond>
__device__ Slopes<Acc<T>> slopes(const AttentionTile<T>& tile, const AttentionSecondArgs& args) {
  using A = Acc<T>;
  const AttentionInput& in = tile.in;
  constexpr int64_t count = kSecond ? kAttentionSecondRows : 1;
  Slopes<A> s;
  s.p = tile.probabilities();
  tile.product(tile.queries(args.dout), tile.keys(in.v), in.value_width, s.ds);
  if constexpr (kSecond) {
    s.tp = score_tangent(tile, args.tangent);
    s.tds = tangent_product(tile, tile.queries(args.dout), tile.keys(args.tangent.tv),
                            tile.queries(args.tdout), tile.keys(in.v), in.value_width);
  }
  for (int a = 0; a < 2; ++a) {
    const A mean = row_stat(tile, args.scratch, kSecond ? 1 : 0, count, a);
    const A r = kSecond ? row_stat(tile, args.scratch, 0, count, a) : A{0};
    const A tmean = kSecond ? row_stat(tile, args.scratch, 2, count, a) : A{0};
    for (int b = 0; b < 2; ++b) {
      const A p = s.p(a, b), slope = s.ds(a, b) - mean;
      s.ds(a, b) = p * slope;
      if constexpr (kSecond) {
        s.tp(a, b) = p * (s.tp(a, b) - r);
        s.tds(a, b) = s.tp(a, b) * slope + p * (s.tds(a, b) - tmean);
      }
    }
  }
  return s;
}

// dQ, or its tangent.
template <class T, bool kSecond>
__global__ void __launch_bounds__(kThreads) attention_query_kernel(AttentionSecondArgs args) {
  using A = Acc<T>;
  __shared__ AttentionShared<A> shared;
  __shared__ SharedTile<A> ds, tds;
  const AttentionInput& in = args.tangent.in;
  int64_t first = 0;
  AttentionTile<T> tile = attention_tile<T>(in, shared, in.heads, in.queries, first);
  tile.i0 = first;
  OutputSums<A> dq;
  each_key_tile(tile, [&] {
    const Slopes<A> s = slopes<T, kSecond>(tile, args);
    __syncthreads();
    tile.store(s.ds, ds);
    if constexpr (kSecond) {
      tile.store(s.tds, tds);
      tile.template accumulate<false>(tds, tile.keys(in.k), tile.j0, in.width, dq);
      tile.template accumulate<false>(ds, tile.keys(args.tangent.tk), tile.j0, in.width, dq);
    } else {
      tile.template accumulate<false>(ds, tile.keys(in.k), tile.j0, in.width, dq);
    }
  });
  const A scale[2] = {static_cast<A>(in.scale), static_cast<A>(in.scale)};
  tile.write(dq, scale, tile.batch * in.heads + tile.head, tile.i0, in.queries, in.width, args.dq);
}

// dK and dV, or their tangents: sums over the queries of all heads that share them.
template <class T, bool kSecond>
__global__ void __launch_bounds__(kThreads) attention_key_kernel(AttentionSecondArgs args) {
  using A = Acc<T>;
  __shared__ AttentionShared<A> shared;
  __shared__ SharedTile<A> p, ds, tds;
  const AttentionInput& in = args.tangent.in;
  int64_t first = 0;
  AttentionTile<T> tile = attention_tile<T>(in, shared, in.kv_heads, in.keys, first);
  tile.j0 = first;
  const int64_t kv = tile.head, group = in.heads / in.kv_heads;
  const A scale = static_cast<A>(in.scale);
  OutputSums<A> dk, dv;
  for (tile.head = kv * group; tile.head < (kv + 1) * group; ++tile.head)
    for (tile.i0 = 0; tile.i0 < in.queries; tile.i0 += kAttentionTile) {
      const int64_t last = tile.i0 + kAttentionTile;
      if (end_key(in, last < in.queries ? last : in.queries) <= first ||
          first_key(in, tile.i0) >= first + kAttentionTile)
        continue;
      const Slopes<A> s = slopes<T, kSecond>(tile, args);
      const HeadRows<T> q = tile.queries(in.q, scale), dout = tile.queries(args.dout);
      __syncthreads();
      tile.store(s.ds, ds);
      tile.store(kSecond ? s.tp : s.p, p);
      if constexpr (kSecond) {
        tile.store(s.tds, tds);
        tile.template accumulate<true>(tds, q, tile.i0, in.width, dk);
        tile.template accumulate<true>(ds, tile.queries(args.tangent.tq, scale), tile.i0, in.width,
                                       dk);
      } else {
        tile.template accumulate<true>(ds, q, tile.i0, in.width, dk);
      }
      tile.template accumulate<true>(p, dout, tile.i0, in.value_width, dv);
      if (kSecond && args.tdout.data) {
        __syncthreads();
        tile.store(s.p, p);
        tile.template accumulate<true>(p, tile.queries(args.tdout), tile.i0, in.value_width, dv);
      }
    }
  const A one[2] = {1, 1};
  const int64_t at = tile.batch * in.kv_heads + kv;
  tile.write(dk, one, at, first, in.keys, in.width, args.dk);
  tile.write(dv, one, at, first, in.keys, in.value_width, args.dv);
}

}  // namespace fastmeta::cuda
