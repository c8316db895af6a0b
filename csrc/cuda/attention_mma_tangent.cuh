// Attention on tensor cores: the tangent of the output.
//
// The sum of (P * S.) V, less r O, is left with the rounding errors of P * S., times V - O, if r is
// the sum of the rounded values; with the exact r the errors would be multiplied by V.
#pragma once

#include "cuda/attention_mma.cuh"

namespace fastmeta::cuda {

template <class T, int W>
struct MmaTangentShared {
  MmaRow<T, W> q[kMmaRows], tq[kMmaRows];
  MmaRow<T, W> k[kMmaOthers<W>], v[kMmaOthers<W>], tk[kMmaOthers<W>], tv[kMmaOthers<W>];
  float stats[2][kMmaRows];  // max and 1 / sum
};

// The tangent of the output, and if `rows` is given, r, D and D. of all queries.
template <class T, int W>
__global__ void __launch_bounds__(kMmaThreads, kMmaBlocks<W>)
    attention_mma_tangent_kernel(AttentionTangentArgs args, Heads dout, Heads tdout, void* rows) {
  if constexpr (kTensorCores) {
    constexpr int kOthers = kMmaOthers<W>, kStride = kMmaStride<W>;
    auto& shared = *dynamic_shared<MmaTangentShared<T, W>>();
    const AttentionInput& in = args.in;
    const MmaItem item = mma_item(in.heads, in.queries);
    const int64_t batch = item.batch, head = item.head, kv = item.head / shared_heads(in);
    const int64_t i = item.first + item.warp_row;
    stage_rows<T, W>(in.q, batch, head, item.first, in.queries, in.width, shared.q);
    stage_rows<T, W>(args.tq, batch, head, item.first, in.queries, in.width, shared.tq);
    stage_stats<2>(in, in.stats, batch, head, item.first, shared.stats);
    const float scale = static_cast<float>(in.scale);
    float r[2] = {0, 0}, rounded_r[2] = {0, 0};
    MmaSums<W> sums;
    const int64_t end = end_key(in, end_row(item, in.queries));
    for (int64_t first = first_key(in, item.first); first < end; first += kOthers) {
      __syncthreads();
      stage_rows<T, W>(in.k, batch, kv, first, in.keys, in.width, shared.k);
      stage_rows<T, W>(in.v, batch, kv, first, in.keys, in.value_width, shared.v);
      stage_rows<T, W>(args.tk, batch, kv, first, in.keys, in.width, shared.tk);
      stage_rows<T, W>(args.tv, batch, kv, first, in.keys, in.value_width, shared.tv);
      wait_for_copies();
      __syncthreads();
      FM_UNROLL(1)
      for (int at = 0; at < kOthers; at += kMmaSide) {
        const int64_t j = first + at;
        if (sees_none(in, i, j, kMmaSide)) continue;
        Accumulator p, t;
        FM_UNROLL(2)
        for (int c = 0; c < W; c += kMmaSide) {
          const LeftBlock<T> q = load_left(&shared.q[item.warp_row][c], kStride);
          const RightBlock<T> k = load_right(&shared.k[at][c], kStride);
          add_product(p, q, k);
          add_product(t, load_left(&shared.tq[item.warp_row][c], kStride), k);
          add_product(t, q, load_right(&shared.tk[at][c], kStride));
        }
        finish_scores<T, false>(in, scale, batch, head, i, j, p);
        for (int n = 0; n < 2; ++n)
          for (int e = 0; e < 4; ++e) {
            const int row = accumulator_row(e);
            p.c[n][e] = std::exp(p.c[n][e] - shared.stats[0][item.warp_row + row]) *
                        shared.stats[1][item.warp_row + row];
            t.c[n][e] *= scale * p.c[n][e];
            r[e / 2] += t.c[n][e];
          }
        const LeftBlock<T> change = rounded<T>(t);
        add_row_sums(change, rounded_r);
        add_rows<T, W>(sums, change, shared.v + at);
        add_rows<T, W>(sums, rounded<T>(p), shared.tv + at);
      }
    }
    const HeadRows<T> out(args.out, batch, head, in.queries);
    const HeadRows<T> g(dout, batch, head, in.queries), tg(tdout, batch, head, in.queries);
    FM_UNROLL(2)
    for (int half = 0; half < 2; ++half) {
      const int64_t row = i + accumulator_row(2 * half);
      r[half] = quad_sum(r[half]);
      const float subtracted = quad_sum(rounded_r[half]);
      float d = 0, td = 0;
      FM_UNROLL(8)
      for (int b = 0; b < W / kMmaSide; ++b)
        for (int n = 0; n < 2; ++n)
          for (int e = 2 * half; e < 2 * half + 2; ++e) {
            const int col = b * kMmaSide + accumulator_column(n, e);
            const float value = out.at(row, col, in.value_width);
            float& sum = sums.block[b].c[n][e];
            sum -= subtracted * value;
            if (!rows) continue;
            const float upstream = g.at(row, col, in.value_width);
            d += upstream * value;
            td += upstream * sum;
            if (tdout.data) td += tg.at(row, col, in.value_width) * value;
          }
      if (!rows) continue;
      const float stats[] = {r[half], quad_sum(d), quad_sum(td)};
      if (threadIdx.x % 4 || row >= in.queries) continue;
      float* to = static_cast<float*>(rows) +
                  (batch * in.heads + head) * kAttentionSecondRows * in.queries + row;
      for (int k = 0; k < kAttentionSecondRows; ++k) to[k * in.queries] = stats[k];
    }
    write_sums<T, W>(sums, {1, 1}, batch * in.heads + head, i, in.queries, in.value_width,
                     args.tout);
  }
}

}  // namespace fastmeta::cuda
