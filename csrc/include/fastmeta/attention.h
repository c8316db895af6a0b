// attention: scaled dot-product attention of heads, with its first and second derivatives, in
// memory linear in the numbers of queries and keys. Per head, with Q scaled by `scale`, and the
// mask B:
//
//   S = Q K' + B,   P = exp(S - max) / sum,   O = P V      (rows: queries, columns: keys)
//
//   forward    O and the row statistics max and 1 / sum
//   backward   the gradient of <G, O> with respect to Q, K and V: with D = rowsum(G * O),
//                dP = G V',  dS = P * (dP - D),  dQ = dS K,  dK = dS' Q,  dV = P' G
//   tangent    the tangent of O along a direction (Q., K., V.):
//                S. = Q. K' + Q K.',  r = rowsum(P * S.),  P. = P * (S. - r),  O. = P. V + P V.
//   second     O., and the tangents of dQ, dK and dV along (Q., K., V.) and, if given, G.:
//                dP. = G V.' + G. V',  D. = rowsum(G * O. + G. * O),
//                dS. = P. * (dP - D) + P * (dP. - D.),
//                dQ. = dS. K + dS K.,  dK. = dS.' Q + dS' Q.,  dV. = P.' G + P' G.
//              Without G. this is a product with the Hessian of <G, O>, which is symmetric: it
//              serves double backward (the gradient with respect to G is O.) and forward mode
//              alike.
//
// (' transposes, * is elementwise.) Scores and probabilities are recomputed in tiles and never
// stored.
#pragma once

#include <algorithm>

#include "fastmeta/parallel.h"
#include "fastmeta/platform.h"

namespace fastmeta {

// (batch, heads, rows, width) with strides in elements; the stride of the last dimension is one.
struct Heads {
  const void* data;
  int64_t batch;
  int64_t head;
  int64_t row;
};

enum class MaskKind : int32_t { none, keep, add };  // keep: boolean, true where a key is seen

// Broadcast to (batch, heads, queries, keys) by strides of zero.
struct AttentionMask {
  MaskKind kind;
  const void* data;  // bytes, or the dtype of the input
  int64_t batch;
  int64_t head;
  int64_t query;
  int64_t key;
};

struct AttentionInput {
  DType dtype;
  int64_t batch;
  int64_t heads;
  int64_t kv_heads;  // divides heads: consecutive heads share one head of k and v
  int64_t queries;
  int64_t keys;
  int64_t width;        // of q and k
  int64_t value_width;  // of v and the output
  int32_t causal;       // query i sees keys j <= i
  int64_t window;       // and |i - j| < window, unless 0
  double scale;
  Heads q;
  Heads k;
  Heads v;
  AttentionMask mask;
  void* stats;  // (batch, heads, 2, queries) in the accumulation dtype: max and 1 / sum; 0 and 0
                // for a query that sees no key
};

// The keys that queries [first, end) may see.
FM_HD int64_t first_key(const AttentionInput& in, int64_t first) {
  if (!in.window || first < in.window) return 0;
  const int64_t seen = first - in.window + 1;
  return seen < in.keys ? seen : in.keys;
}
FM_HD int64_t end_key(const AttentionInput& in, int64_t end) {
  const int64_t seen = in.causal ? end : in.window ? end - 1 + in.window : in.keys;
  return seen < in.keys ? seen : in.keys;
}

// The queries that may see keys [first, end).
FM_HD int64_t first_query(const AttentionInput& in, int64_t first) {
  const int64_t seen = in.causal ? first : in.window ? first - in.window + 1 : 0;
  return seen < 0 ? 0 : seen < in.queries ? seen : in.queries;
}
FM_HD int64_t end_query(const AttentionInput& in, int64_t end) {
  const int64_t seen = in.window ? end - 1 + in.window : in.queries;
  return seen < in.queries ? seen : in.queries;
}

// Outputs are contiguous (batch, heads, rows, width).
struct AttentionForwardArgs {
  AttentionInput in;
  void* out;
};

struct AttentionBackwardArgs {
  AttentionInput in;
  Heads dout;
  Heads out;
  void* scratch;
  void* dq;
  void* dk;
  void* dv;
};

struct AttentionTangentArgs {
  AttentionInput in;
  Heads tq;
  Heads tk;
  Heads tv;
  Heads out;
  void* tout;
};

struct AttentionSecondArgs {
  AttentionTangentArgs tangent;
  Heads dout;
  Heads tdout;  // null data: zero
  void* scratch;
  void* dq;
  void* dk;
  void* dv;
};

// Gradients of keys and values are sums over chunks of queries, whose number depends on sizes
// alone.
constexpr int64_t kAttentionRows = 64;  // queries of a tile
constexpr int64_t kAttentionPad = 16;   // rows of partial sums are whole vectors

inline int64_t attention_padded(int64_t width) {
  return (width + kAttentionPad - 1) / kAttentionPad * kAttentionPad;
}
inline int64_t attention_chunks(const AttentionInput& in) {
  constexpr int64_t kItems = 8;
  const int64_t tiles = (in.queries + kAttentionRows - 1) / kAttentionRows;
  const int64_t heads = std::max<int64_t>(in.batch * in.kv_heads, 1);
  return std::clamp<int64_t>(kItems / heads, 1, std::max<int64_t>(tiles, 1));
}

// Elements of the scratch: `rows` statistics per query, and the partial sums.
inline int64_t attention_scratch(const AttentionInput& in, int64_t rows) {
  return in.batch * in.heads * rows * in.queries +
         attention_chunks(in) * in.batch * in.kv_heads * in.keys *
             (attention_padded(in.width) + attention_padded(in.value_width));
}
constexpr int64_t kAttentionSecondRows = 3;  // r, D and D.

// On CUDA there are no partial sums, but a limit on the width of heads.
constexpr int64_t kMaxAttentionWidth = 128;

inline int64_t attention_cuda_scratch(const AttentionInput& in, int64_t rows) {
  return in.batch * in.heads * std::max<int64_t>(rows, 1) * in.queries;
}

namespace cuda {
int attention_forward(const AttentionForwardArgs& args, void* stream);
int attention_backward(const AttentionBackwardArgs& args, void* stream);
int attention_tangent(const AttentionTangentArgs& args, void* stream);
int attention_second(const AttentionSecondArgs& args, void* stream);
}  // namespace cuda

}  // namespace fastmeta
