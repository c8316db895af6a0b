// Attention on tensor cores: the forward pass, with the softmax of each row rescaled from tile to
// tile.
#pragma once

#include "cuda/attention_mma.cuh"

namespace fastmeta::cuda {

constexpr int kForwardKeys = 64;  // of a tile

template <class T, int W>
struct MmaForwardShared {
  MmaRow<T, W> q[kMmaRows], k[kForwardKeys], v[kForwardKeys];
};

template <class T, int W>
__global__ void __launch_bounds__(kMmaThreads, kMmaBlocks<W>)
    attention_mma_forward_kernel(AttentionForwardArgs args) {
  if constexpr (kTensorCores) {
    constexpr int kBlocks = kForwardKeys / kMmaSide, kStride = kMmaStride<W>;
    auto& shared = *dynamic_shared<MmaForwardShared<T, W>>();
    const AttentionInput& in = args.in;
    const MmaItem item = mma_item(in.heads, in.queries);
    const int64_t i = item.first + item.warp_row, kv = item.head / shared_heads(in);
    stage_rows<T, W>(in.q, item.batch, item.head, item.first, in.queries, in.width, shared.q);
    const float none = -INFINITY, scale = static_cast<float>(in.scale);
    float max[2] = {none, none}, sum[2] = {0, 0};
    MmaSums<W> out;
    const int64_t end = end_key(in, end_row(item, in.queries));
    for (int64_t j = first_key(in, item.first); j < end; j += kForwardKeys) {
      __syncthreads();
      stage_rows<T, W>(in.k, item.batch, kv, j, in.keys, in.width, shared.k);
      stage_rows<T, W>(in.v, item.batch, kv, j, in.keys, in.value_width, shared.v);
      wait_for_copies();
      __syncthreads();
      if (sees_none(in, i, j, kForwardKeys)) continue;
      Accumulator s[kBlocks];
      FM_UNROLL(2)
      for (int c = 0; c < W; c += kMmaSide) {
        const LeftBlock<T> q = load_left(&shared.q[item.warp_row][c], kStride);
        FM_UNROLL(4)
        for (int b = 0; b < kBlocks; ++b)
          add_product(s[b], q, load_right(&shared.k[b * kMmaSide][c], kStride));
      }
      FM_UNROLL(4)
      for (int b = 0; b < kBlocks; ++b)
        finish_scores<T, false>(in, scale, item.batch, item.head, i, j + b * kMmaSide, s[b]);
      float top[2] = {none, none}, base[2], shrink[2];
      FM_UNROLL(4)
      for (int b = 0; b < kBlocks; ++b)
        for (int n = 0; n < 2; ++n)
          for (int e = 0; e < 4; ++e) {
            const float x = s[b].c[n][e];
            top[e / 2] = x > top[e / 2] ? x : top[e / 2];
          }
      for (int half = 0; half < 2; ++half) {
        const float next = quad_max(top[half] > max[half] ? top[half] : max[half]);
        base[half] = next == none ? 0 : next;  // no key seen so far
        shrink[half] = std::exp(max[half] - base[half]);
        sum[half] *= shrink[half];
        max[half] = next;
      }
      for (Accumulator& block : out.block)
        for (int n = 0; n < 2; ++n)
          for (int e = 0; e < 4; ++e) block.c[n][e] *= shrink[e / 2];
      FM_UNROLL(4)
      for (int b = 0; b < kBlocks; ++b) {
        for (int n = 0; n < 2; ++n)
          for (int e = 0; e < 4; ++e) {
            s[b].c[n][e] = std::exp(s[b].c[n][e] - base[e / 2]);
            sum[e / 2] += s[b].c[n][e];
          }
        add_rows<T, W>(out, rounded<T>(s[b]), shared.v + b * kMmaSide);
      }
    }
    float inverse[2];
    const int64_t head = item.batch * in.heads + item.head;
    for (int half = 0; half < 2; ++half) {
      const float total = quad_sum(sum[half]);
      inverse[half] = total == 0 ? 0 : 1 / total;
      const int64_t row = i + accumulator_row(2 * half);
      if (threadIdx.x % 4 || row >= in.queries) continue;
      float* stats = static_cast<float*>(in.stats) + head * 2 * in.queries + row;
      stats[0] = total == 0 ? 0 : max[half];
      stats[in.queries] = inverse[half];
    }
    write_sums<T, W>(out, inverse, head, i, in.queries, in.value_width, args.out);
  }
}

}  // namespace fastmeta::cuda
