// Attention on tensor cores: the gradients of first order, and their tangents. Queries and keys
// have kernels of their own, so that no block adds to the sums of another. The two are mirror
// images: with x for Q or K and y for G or V, of the block's own rows and of the others,
//
//   S = x x',  dP = y y',  S. = x. x' + x x.',  dP. = y. y' + y y.'
//
// on both sides, transposed for keys; and dS x and P y are the gradients of the own x and y, but
// that queries have no gradient of y.
#pragma once

#include "cuda/attention_mma.cuh"

namespace fastmeta::cuda {

enum MmaTensor { kX, kY, kTangentX, kTangentY };

template <class T, int W, bool kKeys, bool kSecond>
struct MmaGradient {
  static constexpr int kTensors = kSecond ? 4 : 2, kOthers = kMmaOthers<W>;
  static constexpr int kQueries = kKeys ? kOthers : kMmaRows;
  static constexpr int kRowStats = kSecond ? kAttentionSecondRows : 1;  // r, D and D., or D
  static constexpr int kMean = kSecond ? 3 : 2;                         // where D is in `stats`

  struct Shared {
    MmaRow<T, W> own[kTensors][kMmaRows];
    MmaRow<T, W> other[kTensors][kOthers];
    float stats[2 + kRowStats][kQueries];  // max and 1 / sum, and those of the scratch
  };
  // Of 16 x 16 scores: S and dP, and then P and dS, and the tangents of these.
  struct Scores {
    Accumulator p, ds, tp, tds;
  };
  struct Weights {
    LeftBlock<T> p, ds, tp, tds;
  };

  const AttentionSecondArgs& args;
  const AttentionInput& in;
  Shared& shared;
  const MmaItem item;
  const float scale = static_cast<float>(in.scale);

  template <int kRows>
  __device__ void stage_queries(int64_t head, int64_t first,
                                MmaRow<T, W> (&to)[kTensors][kRows]) const {
    const int64_t batch = item.batch;
    stage_rows<T, W>(in.q, batch, head, first, in.queries, in.width, to[kX]);
    stage_rows<T, W>(args.dout, batch, head, first, in.queries, in.value_width, to[kY]);
    stage_stats<2>(in, in.stats, batch, head, first, shared.stats);
    stage_stats<kRowStats>(in, args.scratch, batch, head, first, shared.stats + 2);
    if constexpr (kSecond) {
      stage_rows<T, W>(args.tangent.tq, batch, head, first, in.queries, in.width, to[kTangentX]);
      if (args.tdout.data)
        stage_rows<T, W>(args.tdout, batch, head, first, in.queries, in.value_width, to[kTangentY]);
    }
  }
  template <int kRows>
  __device__ void stage_keys(int64_t head, int64_t first,
                             MmaRow<T, W> (&to)[kTensors][kRows]) const {
    const int64_t batch = item.batch;
    stage_rows<T, W>(in.k, batch, head, first, in.keys, in.width, to[kX]);
    stage_rows<T, W>(in.v, batch, head, first, in.keys, in.value_width, to[kY]);
    if constexpr (kSecond) {
      stage_rows<T, W>(args.tangent.tk, batch, head, first, in.keys, in.width, to[kTangentX]);
      stage_rows<T, W>(args.tangent.tv, batch, head, first, in.keys, in.value_width, to[kTangentY]);
    }
  }

  // The products of the warp's rows with 16 others, from row `at` of the tile on.
  __device__ Scores products(int at) const {
    constexpr int kStride = kMmaStride<W>;
    Scores s;
    FM_UNROLL(1)
    for (int c = 0; c < W; c += kMmaSide) {
      const auto own = [&](int k) { return load_left(&shared.own[k][item.warp_row][c], kStride); };
      const auto other = [&](int k) { return load_right(&shared.other[k][at][c], kStride); };
      const LeftBlock<T> x = own(kX);
      const RightBlock<T> other_x = other(kX);
      add_product(s.p, x, other_x);
      if constexpr (kSecond) {
        add_product(s.tp, own(kTangentX), other_x);
        add_product(s.tp, x, other(kTangentX));
      }
      const LeftBlock<T> y = own(kY);
      const RightBlock<T> other_y = other(kY);
      add_product(s.ds, y, other_y);
      if constexpr (kSecond) {
        if (kKeys || args.tdout.data) add_product(s.tds, own(kTangentY), other_y);
        if (!kKeys || args.tdout.data) add_product(s.tds, y, other(kTangentY));
      }
    }
    return s;
  }

  // Of the queries and keys from i and j on.
  __device__ Weights weights(int64_t head, int64_t i, int64_t j, int at) const {
    Scores s = products(at);
    finish_scores<T, kKeys>(in, scale, item.batch, head, i, j, s.p);
    for (int n = 0; n < 2; ++n)
      for (int e = 0; e < 4; ++e) {
        const int query =
            kKeys ? at + accumulator_column(n, e) : item.warp_row + accumulator_row(e);
        const float p = std::exp(s.p.c[n][e] - shared.stats[0][query]) * shared.stats[1][query];
        const float slope = s.ds.c[n][e] - shared.stats[kMean][query];
        s.p.c[n][e] = p;
        s.ds.c[n][e] = p * slope;
        if constexpr (kSecond) {
          const float tp = p * (s.tp.c[n][e] * scale - shared.stats[2][query]);
          s.tp.c[n][e] = tp;
          s.tds.c[n][e] = tp * slope + p * (s.tds.c[n][e] - shared.stats[4][query]);
        }
      }
    if constexpr (kSecond)
      return {rounded<T>(s.p), rounded<T>(s.ds), rounded<T>(s.tp), rounded<T>(s.tds)};
    else
      return {rounded<T>(s.p), rounded<T>(s.ds), {}, {}};
  }

  // Adds the products with the others from row `at` on to the gradients of x and y.
  __device__ void add(const Weights& weights, int at, MmaSums<W>& dx, MmaSums<W>& dy) const {
    const auto other = [&](int k) { return shared.other[k] + at; };
    if constexpr (kSecond) {
      add_rows<T, W>(dx, weights.tds, other(kX));
      add_rows<T, W>(dx, weights.ds, other(kTangentX));
      if constexpr (kKeys) {
        add_rows<T, W>(dy, weights.tp, other(kY));
        if (args.tdout.data) add_rows<T, W>(dy, weights.p, other(kTangentY));
      }
    } else {
      add_rows<T, W>(dx, weights.ds, other(kX));
      if constexpr (kKeys) add_rows<T, W>(dy, weights.p, other(kY));
    }
  }
};

// dQ, or dK and dV: sums over the queries of all heads that share them. Or the tangents of these.
template <class T, int W, bool kKeys, bool kSecond>
__global__ void __launch_bounds__(kMmaThreads, kMmaBlocks<W>)
    attention_mma_gradient_kernel(AttentionSecondArgs args) {
  if constexpr (kTensorCores) {
    using Gradient = MmaGradient<T, W, kKeys, kSecond>;
    const AttentionInput& in = args.tangent.in;
    const int64_t rows = kKeys ? in.keys : in.queries, heads = kKeys ? in.kv_heads : in.heads;
    const MmaItem item = mma_item(heads, rows);
    auto& shared = *dynamic_shared<typename Gradient::Shared>();
    const Gradient block{args, in, shared, item};
    const int64_t last = end_row(item, rows);
    const int64_t begin = kKeys ? first_query(in, item.first) : first_key(in, item.first);
    const int64_t end = kKeys ? end_query(in, last) : end_key(in, last);
    const unsigned group = kKeys ? shared_heads(in) : 1, first_head = item.head * group;
    MmaSums<W> dx, dy;
    if constexpr (kKeys)
      block.stage_keys(item.head, item.first, shared.own);
    else
      block.stage_queries(item.head, item.first, shared.own);
    for (unsigned head = first_head; head < first_head + group; ++head)
      for (int64_t other = begin; other < end; other += Gradient::kOthers) {
        __syncthreads();
        if constexpr (kKeys)
          block.stage_queries(head, other, shared.other);
        else
          block.stage_keys(item.head / shared_heads(in), other, shared.other);
        wait_for_copies();
        __syncthreads();
        FM_UNROLL(1)
        for (int at = 0; at < Gradient::kOthers; at += kMmaSide) {
          const int64_t own = item.first + item.warp_row;
          const int64_t i = kKeys ? other + at : own, j = kKeys ? own : other + at;
          if (!sees_none(in, i, j, kMmaSide)) block.add(block.weights(head, i, j, at), at, dx, dy);
        }
      }
    const int64_t at = item.batch * heads + item.head, row = item.first + item.warp_row;
    write_sums<T, W>(dx, {block.scale, block.scale}, at, row, rows, in.width,
                     kKeys ? args.dk : args.dq);
    if (kKeys) write_sums<T, W>(dy, {1, 1}, at, row, rows, in.value_width, args.dv);
  }
}

}  // namespace fastmeta::cuda
