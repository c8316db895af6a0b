// The ops of layer and RMS normalisation: schemas, checks and allocation; see library.cpp on
// gradients.
#include "fastmeta/row_norm.h"

#include "cpu/kernels.h"
#include "ops/tensors.h"

namespace fastmeta {
namespace {

constexpr char kOp[] = "row_norm";

using Optional = std::optional<Tensor>;

Ints shape_like(const Tensor& t) {
  const auto sizes = t.sizes();
  return Ints(sizes.begin(), sizes.end());
}

Tensor same_shape(const Tensor& t) {
  return empty(t, shape_like(t), t.scalar_type());
}

// Contiguous tensors, kept alive, and the arguments of the kernels that point to them.
struct Input {
  Tensors copies;
  RowNormInput args{};
  const Tensor& x;
  const Tensor& weight;

  Input(const Tensor& x_, const Tensor& weight_, bool centred) : x(x_), weight(weight_) {
    FM_REQUIRE(x.dim() == 3 && x.size(2) > 0,
               "row_norm: expected (groups, rows, width) of a positive width, got shape " +
                   shape_of(x) + ".");
    FM_REQUIRE(
        has_shape(weight, Ints{x.size(0), x.size(2)}) && same_device(weight, x) &&
            (weight.scalar_type() == x.scalar_type() || weight.scalar_type() == acc_type(x)),
        "row_norm: the weight " + shape_of(weight) + " does not match the input " + shape_of(x) +
            ": expected its width and device, and its dtype, or float32 for half precision.");
    args.dtype = dtype_of(x);
    args.weight_dtype = dtype_of(weight);
    args.groups = x.size(0), args.rows = x.size(1), args.width = x.size(2);
    args.centred = centred;
    args.x = keep(x);
    args.weight = keep(weight);
  }

  const void* keep(const Tensor& t) {
    copies.push_back(dense(t));
    return copies.back().const_data_ptr();
  }
  const void* like(const Tensor& t, const Tensor& model, const char* name) {
    FM_REQUIRE(has_shape(t, model.sizes()) && same_kind(t, model),
               std::string("row_norm: ") + name + " " + shape_of(t) + " does not match shape " +
                   shape_of(model) + ", dtype and device.");
    return keep(t);
  }
  void read_stats(const Tensor& stats) {
    FM_REQUIRE(
        has_shape(stats, Ints{args.groups, 2, args.rows}) && stats.scalar_type() == acc_type(x) &&
            same_device(stats, x),
        "row_norm: statistics " + shape_of(stats) + " do not match the input " + shape_of(x) + ".");
    args.stats = const_cast<void*>(keep(stats));
  }
  Tensor scratch() const { return empty(x, {row_norm_scratch(args)}, acc_type(x)); }
};

// The output and the statistics of rows.
Tensors row_norm_forward(const Tensor& x, const Tensor& weight, const Tensor& bias, bool centred,
                         double eps) {
  Input in(x, weight, centred);
  Tensors out{same_shape(x), empty(x, {x.size(0), 2, x.size(1)}, acc_type(x))};
  in.args.stats = out[1].mutable_data_ptr();
  const void* shift = in.like(bias, weight, "the bias");
  const RowNormForwardArgs args{in.args, eps, shift, out[0].mutable_data_ptr()};
  run(
      x, kOp, [&](const Parallel& p) { cpu::kernels().row_norm_forward(args, p); },
      FM_CUDA(row_norm_forward(args, stream)));
  return out;
}

Tensors row_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& weight,
                          const Tensor& stats, bool centred) {
  Input in(x, weight, centred);
  in.read_stats(stats);
  const void* upstream = in.like(dy, x, "the gradient of the output");
  Tensor scratch = in.scratch();
  Tensors grads{same_shape(x), same_shape(weight), same_shape(weight)};
  const RowNormBackwardArgs args{in.args,
                                 upstream,
                                 scratch.mutable_data_ptr(),
                                 grads[0].mutable_data_ptr(),
                                 grads[1].mutable_data_ptr(),
                                 grads[2].mutable_data_ptr()};
  run(
      x, kOp, [&](const Parallel& p) { cpu::kernels().row_norm_backward(args, p); },
      FM_CUDA(row_norm_backward(args, stream)));
  return grads;
}

RowNormSecondArgs directions(Input& in, const Tensor& tx, const Tensor& tweight,
                             const Tensor& tbias, const Tensor& stats) {
  in.read_stats(stats);
  RowNormSecondArgs args{};
  args.tx = in.like(tx, in.x, "the direction of the input");
  args.tweight = in.like(tweight, in.weight, "the direction of the weight");
  args.tbias = in.like(tbias, in.weight, "the direction of the bias");
  args.in = in.args;
  return args;
}

// The tangent of the output.
Tensor row_norm_tangent(const Tensor& tx, const Tensor& tweight, const Tensor& tbias,
                        const Tensor& x, const Tensor& weight, const Tensor& stats, bool centred) {
  Input in(x, weight, centred);
  RowNormSecondArgs args = directions(in, tx, tweight, tbias, stats);
  Tensor ty = same_shape(x);
  args.ty = ty.mutable_data_ptr();
  run(
      x, kOp, [&](const Parallel& p) { cpu::kernels().row_norm_second(args, p); },
      FM_CUDA(row_norm_second(args, stream)));
  return ty;
}

// The same, and the tangents of the gradients of input, weight and bias, along tdy as well.
Tensors row_norm_second(const Tensor& dy, const Optional& tdy, const Tensor& tx,
                        const Tensor& tweight, const Tensor& tbias, const Tensor& x,
                        const Tensor& weight, const Tensor& stats, bool centred) {
  Input in(x, weight, centred);
  RowNormSecondArgs args = directions(in, tx, tweight, tbias, stats);
  args.dy = in.like(dy, x, "the gradient of the output");
  if (tdy) args.tdy = in.like(*tdy, x, "the direction of the output's gradient");
  Tensor scratch = in.scratch();
  Tensors out{same_shape(x), same_shape(x), same_shape(weight), same_shape(weight)};
  args.scratch = scratch.mutable_data_ptr();
  args.ty = out[0].mutable_data_ptr();
  args.dx = out[1].mutable_data_ptr();
  args.dweight = out[2].mutable_data_ptr();
  args.dbias = out[3].mutable_data_ptr();
  run(
      x, kOp, [&](const Parallel& p) { cpu::kernels().row_norm_second(args, p); },
      FM_CUDA(row_norm_second(args, stream)));
  return out;
}

}  // namespace
}  // namespace fastmeta

STABLE_TORCH_LIBRARY_FRAGMENT(fastmeta, m) {
  m.def(
      "row_norm_forward(Tensor x, Tensor weight, Tensor bias, bool centred, float eps) "
      "-> Tensor[]");
  m.def(
      "row_norm_backward(Tensor dy, Tensor x, Tensor weight, Tensor stats, bool centred) "
      "-> Tensor[]");
  m.def(
      "row_norm_tangent(Tensor tx, Tensor tweight, Tensor tbias, Tensor x, Tensor weight, "
      "Tensor stats, bool centred) -> Tensor");
  m.def(
      "row_norm_second(Tensor dy, Tensor? tdy, Tensor tx, Tensor tweight, Tensor tbias, Tensor x, "
      "Tensor weight, Tensor stats, bool centred) -> Tensor[]");
}

FM_KERNELS(m) {
  m.impl("row_norm_forward", TORCH_BOX(&fastmeta::row_norm_forward));
  m.impl("row_norm_backward", TORCH_BOX(&fastmeta::row_norm_backward));
  m.impl("row_norm_tangent", TORCH_BOX(&fastmeta::row_norm_tangent));
  m.impl("row_norm_second", TORCH_BOX(&fastmeta::row_norm_second));
}
