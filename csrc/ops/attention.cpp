// The attention ops: schemas, checks and allocation; see library.cpp on gradients.
#include "fastmeta/attention.h"

#include "cpu/kernels.h"
#include "ops/tensors.h"

namespace fastmeta {
namespace {

constexpr char kOp[] = "attention";

using Mask = std::optional<Tensor>;

// The data of (batch, heads, rows, width) with dense rows; copies are kept alive in `copies`.
Heads heads(const Tensor& t, Tensors& copies) {
  const Tensor dense_t = t.size(3) <= 1 || t.stride(3) == 1 ? t : dense(t);
  copies.push_back(dense_t);
  return {dense_t.const_data_ptr(), dense_t.stride(0), dense_t.stride(1), dense_t.stride(2)};
}

void require_shape(const Tensor& t, const Tensor& q, const Ints& shape, const char* name) {
  FM_REQUIRE(has_shape(t, shape) && same_kind(t, q), std::string("attention: ") + name + " " +
                                                         shape_of(t) + " does not match queries " +
                                                         shape_of(q) + " of its dtype and device.");
}

// Tensors, kept alive, and the arguments of the kernels that point to them.
struct Input {
  Tensors copies;
  AttentionInput args{};

  Input(const Tensor& q, const Tensor& k, const Tensor& v, const Mask& mask, bool causal,
        int64_t window, double scale) {
    FM_REQUIRE(q.dim() == 4 && k.dim() == 4 && v.dim() == 4,
               "attention: expected (batch, heads, tokens, width) queries, keys and values, got " +
                   shape_of(q) + ", " + shape_of(k) + " and " + shape_of(v) + ".");
    args.dtype = dtype_of(q);
    args.batch = q.size(0), args.heads = q.size(1), args.queries = q.size(2);
    args.kv_heads = k.size(1), args.keys = k.size(2), args.width = q.size(3);
    args.value_width = v.size(3);
    require_shape(k, q, {args.batch, args.kv_heads, args.keys, args.width}, "keys");
    require_shape(v, q, {args.batch, args.kv_heads, args.keys, args.value_width}, "values");
    FM_REQUIRE(!q.is_cuda() || std::max(args.width, args.value_width) <= kMaxAttentionWidth,
               "attention: heads on a GPU are at most 128 wide, got queries " + shape_of(q) +
                   " and values " + shape_of(v) + ".");
    FM_REQUIRE(
        args.heads == args.kv_heads || (args.kv_heads > 0 && args.heads % args.kv_heads == 0),
        "attention: the " + std::to_string(args.kv_heads) +
            " heads of keys and values must divide the " + std::to_string(args.heads) +
            " heads of queries.");
    FM_REQUIRE(window >= 0, "attention: the window must be positive, or 0 for none, got " +
                                std::to_string(window) + ".");
    args.causal = causal;
    args.window = window;
    args.scale = scale;
    args.q = heads(q, copies);
    args.k = heads(k, copies);
    args.v = heads(v, copies);
    if (mask) read_mask(*mask, q);
  }

  // A dimension of size one is broadcast.
  void read_mask(const Tensor& mask, const Tensor& q) {
    const bool keep = mask.scalar_type() == ScalarType::Bool;
    const int64_t sizes[] = {args.batch, args.heads, args.queries, args.keys};
    int64_t strides[4] = {};
    bool fits =
        mask.dim() == 4 && same_device(mask, q) && (keep || mask.scalar_type() == q.scalar_type());
    for (int64_t d = 0; fits && d < 4; ++d) {
      fits = mask.size(d) == 1 || mask.size(d) == sizes[d];
      strides[d] = mask.size(d) == 1 ? 0 : mask.stride(d);
    }
    FM_REQUIRE(fits,
               "attention: expected a boolean mask or one of the queries' dtype that can be "
               "broadcast to (batch, heads, queries, keys), got shape " +
                   shape_of(mask) + " for queries " + shape_of(q) + " and " +
                   std::to_string(args.keys) + " keys.");
    args.mask = {keep ? MaskKind::keep : MaskKind::add,
                 mask.const_data_ptr(),
                 strides[0],
                 strides[1],
                 strides[2],
                 strides[3]};
    copies.push_back(mask);
  }

  Heads like_output(const Tensor& t, const Tensor& q, const char* name) {
    require_shape(t, q, {args.batch, args.heads, args.queries, args.value_width}, name);
    return heads(t, copies);
  }

  void read_stats(const Tensor& stats, const Tensor& q) {
    FM_REQUIRE(
        has_shape(stats, Ints{args.batch, args.heads, 2, args.queries}) &&
            stats.scalar_type() == acc_type(q) && same_device(stats, q),
        "attention: statistics " + shape_of(stats) + " do not match queries " + shape_of(q) + ".");
    copies.push_back(dense(stats));
    args.stats = const_cast<void*>(copies.back().const_data_ptr());
  }
};

Tensor empty_heads(const Tensor& t) {
  return empty(t, {t.size(0), t.size(1), t.size(2), t.size(3)}, t.scalar_type());
}

Tensor empty_output(const Tensor& q, const Tensor& v) {
  return empty(q, {q.size(0), q.size(1), q.size(2), v.size(3)}, q.scalar_type());
}

Tensor scratch_of(const AttentionInput& in, const Tensor& q, int64_t rows) {
  const int64_t size = q.is_cuda() ? attention_cuda_scratch(in, rows) : attention_scratch(in, rows);
  return empty(q, {size}, acc_type(q));
}

Tensors attention_forward(const Tensor& q, const Tensor& k, const Tensor& v, const Mask& mask,
                          bool causal, int64_t window, double scale) {
  Input in(q, k, v, mask, causal, window, scale);
  Tensors out{empty_output(q, v), empty(q, {q.size(0), q.size(1), 2, q.size(2)}, acc_type(q))};
  in.args.stats = out[1].mutable_data_ptr();
  const AttentionForwardArgs args{in.args, out[0].mutable_data_ptr()};
  run(
      q, kOp, [&](const Parallel& p) { cpu::kernels().attention_forward(args, p); },
      FM_CUDA(attention_forward(args, stream)));
  return out;
}

Tensors attention_backward(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v,
                           const Mask& mask, const Tensor& out, const Tensor& stats, bool causal,
                           int64_t window, double scale) {
  Input in(q, k, v, mask, causal, window, scale);
  in.read_stats(stats, q);
  const Heads upstream = in.like_output(dout, q, "the gradient of the output");
  const Heads output = in.like_output(out, q, "the output");
  Tensor scratch = scratch_of(in.args, q, 0);
  Tensors grads{empty_heads(q), empty_heads(k), empty_heads(v)};
  const AttentionBackwardArgs args{in.args,
                                   upstream,
                                   output,
                                   scratch.mutable_data_ptr(),
                                   grads[0].mutable_data_ptr(),
                                   grads[1].mutable_data_ptr(),
                                   grads[2].mutable_data_ptr()};
  run(
      q, kOp, [&](const Parallel& p) { cpu::kernels().attention_backward(args, p); },
      FM_CUDA(attention_backward(args, stream)));
  return grads;
}

AttentionTangentArgs tangent_args(Input& in, const Tensor& tq, const Tensor& tk, const Tensor& tv,
                                  const Tensor& q, const Tensor& k, const Tensor& v,
                                  const Tensor& out, const Tensor& stats) {
  require_shape(tq, q, {q.size(0), q.size(1), q.size(2), q.size(3)}, "the direction of queries");
  require_shape(tk, q, {k.size(0), k.size(1), k.size(2), k.size(3)}, "the direction of keys");
  require_shape(tv, q, {v.size(0), v.size(1), v.size(2), v.size(3)}, "the direction of values");
  in.read_stats(stats, q);
  const Heads output = in.like_output(out, q, "the output");
  const Heads directions[] = {heads(tq, in.copies), heads(tk, in.copies), heads(tv, in.copies)};
  return {in.args, directions[0], directions[1], directions[2], output, nullptr};
}

// The tangent of the output along (tq, tk, tv).
Tensor attention_tangent(const Tensor& tq, const Tensor& tk, const Tensor& tv, const Tensor& q,
                         const Tensor& k, const Tensor& v, const Mask& mask, const Tensor& out,
                         const Tensor& stats, bool causal, int64_t window, double scale) {
  Input in(q, k, v, mask, causal, window, scale);
  AttentionTangentArgs args = tangent_args(in, tq, tk, tv, q, k, v, out, stats);
  Tensor tangent = empty_output(q, v);
  args.tout = tangent.mutable_data_ptr();
  run(
      q, kOp, [&](const Parallel& p) { cpu::kernels().attention_tangent(args, p); },
      FM_CUDA(attention_tangent(args, stream)));
  return tangent;
}

// The same, and the tangents of the gradients of queries, keys and values, along tdout as well.
Tensors attention_second(const Tensor& dout, const Mask& tdout, const Tensor& tq, const Tensor& tk,
                         const Tensor& tv, const Tensor& q, const Tensor& k, const Tensor& v,
                         const Mask& mask, const Tensor& out, const Tensor& stats, bool causal,
                         int64_t window, double scale) {
  Input in(q, k, v, mask, causal, window, scale);
  AttentionSecondArgs args{};
  args.tangent = tangent_args(in, tq, tk, tv, q, k, v, out, stats);
  args.dout = in.like_output(dout, q, "the gradient of the output");
  if (tdout) args.tdout = in.like_output(*tdout, q, "the direction of the output's gradient");
  Tensor scratch = scratch_of(in.args, q, kAttentionSecondRows);
  Tensors results{empty_output(q, v), empty_heads(q), empty_heads(k), empty_heads(v)};
  args.scratch = scratch.mutable_data_ptr();
  args.tangent.tout = results[0].mutable_data_ptr();
  args.dq = results[1].mutable_data_ptr();
  args.dk = results[2].mutable_data_ptr();
  args.dv = results[3].mutable_data_ptr();
  run(
      q, kOp, [&](const Parallel& p) { cpu::kernels().attention_second(args, p); },
      FM_CUDA(attention_second(args, stream)));
  return results;
}

}  // namespace
}  // namespace fastmeta

STABLE_TORCH_LIBRARY_FRAGMENT(fastmeta, m) {
  m.def(
      "attention_forward(Tensor q, Tensor k, Tensor v, Tensor? mask, bool causal, int window, "
      "float scale) -> Tensor[]");
  m.def(
      "attention_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor out, "
      "Tensor stats, bool causal, int window, float scale) -> Tensor[]");
  m.def(
      "attention_tangent(Tensor tq, Tensor tk, Tensor tv, Tensor q, Tensor k, Tensor v, "
      "Tensor? mask, Tensor out, Tensor stats, bool causal, int window, float scale) -> Tensor");
  m.def(
      "attention_second(Tensor dout, Tensor? tdout, Tensor tq, Tensor tk, Tensor tv, Tensor q, "
      "Tensor k, Tensor v, Tensor? mask, Tensor out, Tensor stats, bool causal, int window, "
      "float scale) -> Tensor[]");
}

FM_KERNELS(m) {
  m.impl("attention_forward", TORCH_BOX(&fastmeta::attention_forward));
  m.impl("attention_backward", TORCH_BOX(&fastmeta::attention_backward));
  m.impl("attention_tangent", TORCH_BOX(&fastmeta::attention_tangent));
  m.impl("attention_second", TORCH_BOX(&fastmeta::attention_second));
}
