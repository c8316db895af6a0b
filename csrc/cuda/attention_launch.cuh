// Launches of the attention kernels: on tensor cores in half precision, where the GPU has those
// that cuda/mma.cuh uses.
#pragma once

#include <algorithm>

#include "cuda/attention_mma_forward.cuh"
#include "cuda/attention_mma_gradient.cuh"
#include "cuda/attention_mma_tangent.cuh"
#include "cuda/attention_second.cuh"
#include "cuda/launch.h"

namespace fastmeta::cuda {

// Launches a kernel with a block per tile of `side` rows of each head.
template <class Launch, class... P, class... A>
void launch_tiles(const Launch& launch, void (*kernel)(P...), int64_t heads, int64_t rows, int side,
                  int threads, const A&... args) {
  const int64_t blocks = heads * ((rows + side - 1) / side);
  if (blocks > 0) launch(kernel, static_cast<unsigned>(blocks), threads, args...);
}

template <class Launch, class... P, class... A>
void launch_plain(const Launch& launch, void (*kernel)(P...), int64_t heads, int64_t rows,
                  const A&... args) {
  launch_tiles(launch, kernel, heads, rows, kAttentionTile, kThreads, args...);
}

template <class Shared, class Launch, class... P, class... A>
void launch_mma(const Launch& launch, void (*kernel)(P...), int64_t heads, int64_t rows,
                const A&... args) {
  static_assert(sizeof(Shared) <= 99 * 1024, "more than sm_86 has");
  launch_tiles(launch.with_shared(sizeof(Shared)), kernel, heads, rows, kMmaRows, kMmaThreads,
               args...);
}

// Calls plain(zero) with a zero of the dtype, or mma(zero, W) with the number of columns that heads
// are padded to as a type.
template <class Launch, class Plain, class Mma>
void dispatch_attention(const AttentionInput& in, const Launch& launch, const Plain& plain,
                        const Mma& mma) {
  dispatch(in.dtype, [&](auto zero) {
    using T = decltype(zero);
    if constexpr (std::is_same_v<T, Half> || std::is_same_v<T, BFloat16>) {
      if (launch.compiled_for(attention_mma_forward_kernel<T, 32>, kMmaCapability)) {
        const int64_t width = std::max(in.width, in.value_width);
        if (width <= 32) return mma(zero, std::integral_constant<int, 32>{});
        if (width <= 64) return mma(zero, std::integral_constant<int, 64>{});
        if (width <= 96) return mma(zero, std::integral_constant<int, 96>{});
        return mma(zero, std::integral_constant<int, 128>{});
      }
    }
    plain(zero);
  });
}

template <class Launch>
void launch_attention_forward(const AttentionForwardArgs& args, const Launch& launch) {
  const AttentionInput& in = args.in;
  const int64_t heads = in.batch * in.heads;
  dispatch_attention(
      in, launch,
      [&](auto zero) {
        launch_plain(launch, attention_forward_kernel<decltype(zero)>, heads, in.queries, args);
      },
      [&](auto zero, auto w) {
        using T = decltype(zero);
        launch_mma<MmaForwardShared<T, w>>(launch, attention_mma_forward_kernel<T, w>, heads,
                                           in.queries, args);
      });
}

template <class Launch>
void launch_attention_tangent(const AttentionTangentArgs& args, const Launch& launch,
                              const Heads& dout = {}, const Heads& tdout = {},
                              void* rows = nullptr) {
  const AttentionInput& in = args.in;
  const int64_t heads = in.batch * in.heads;
  dispatch_attention(
      in, launch,
      [&](auto zero) {
        launch_plain(launch, attention_tangent_kernel<decltype(zero)>, heads, in.queries, args,
                     dout, tdout, rows);
      },
      [&](auto zero, auto w) {
        using T = decltype(zero);
        launch_mma<MmaTangentShared<T, w>>(launch, attention_mma_tangent_kernel<T, w>, heads,
                                           in.queries, args, dout, tdout, rows);
      });
}

template <bool kSecond, class Launch>
void launch_gradients(const AttentionSecondArgs& args, const Launch& launch) {
  const AttentionInput& in = args.tangent.in;
  const int64_t heads = in.batch * in.heads, kv_heads = in.batch * in.kv_heads;
  dispatch_attention(
      in, launch,
      [&](auto zero) {
        using T = decltype(zero);
        launch_plain(launch, attention_query_kernel<T, kSecond>, heads, in.queries, args);
        launch_plain(launch, attention_key_kernel<T, kSecond>, kv_heads, in.keys, args);
      },
      [&](auto zero, auto w) {
        using T = decltype(zero);
        launch_mma<typename MmaGradient<T, w, false, kSecond>::Shared>(
            launch, attention_mma_gradient_kernel<T, w, false, kSecond>, heads, in.queries, args);
        launch_mma<typename MmaGradient<T, w, true, kSecond>::Shared>(
            launch, attention_mma_gradient_kernel<T, w, true, kSecond>, kv_heads, in.keys, args);
      });
}

template <class Launch>
void launch_attention_backward(const AttentionBackwardArgs& args, const Launch& launch) {
  const AttentionInput& in = args.in;
  dispatch(in.dtype, [&](auto zero) {
    launch_tiles(launch, attention_mean_kernel<decltype(zero)>, 1, in.batch * in.heads * in.queries,
                 kThreads / kWarp, kThreads, in, args.dout, args.out, args.scratch);
  });
  AttentionSecondArgs first{};
  first.tangent.in = in;
  first.dout = args.dout;
  first.scratch = args.scratch;
  first.dq = args.dq;
  first.dk = args.dk;
  first.dv = args.dv;
  launch_gradients<false>(first, launch);
}

template <class Launch>
void launch_attention_second(const AttentionSecondArgs& args, const Launch& launch) {
  launch_attention_tangent(args.tangent, launch, args.dout, args.tdout, args.scratch);
  launch_gradients<true>(args, launch);
}

}  // namespace fastmeta::cuda
