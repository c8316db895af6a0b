// The cross-entropy ops: schemas, checks and allocation; see library.cpp on gradients.
#include "fastmeta/cross_entropy.h"

#include "cpu/kernels.h"
#include "ops/tensors.h"

namespace fastmeta {
namespace {

constexpr char kOp[] = "cross_entropy";

using Optional = std::optional<Tensor>;

// Contiguous tensors, kept alive, and the arguments of the kernels that point to them.
struct Input {
  Tensors copies;
  CrossEntropyInput args{};
  const Tensor& z;

  Input(const Tensor& z_, const Tensor& target, int64_t ignored, double smoothing) : z(z_) {
    FM_REQUIRE(z.dim() == 2 && z.size(1) > 0,
               "cross_entropy: expected logits (rows, classes) of at least one class, got shape " +
                   shape_of(z) + ".");
    FM_REQUIRE(has_shape(target, Ints{z.size(0)}) && same_device(target, z) &&
                   target.scalar_type() == ScalarType::Long,
               "cross_entropy: expected one int64 class index per row on the logits' device, got "
               "shape " +
                   shape_of(target) + " for logits " + shape_of(z) + ".");
    FM_REQUIRE(smoothing >= 0 && smoothing <= 1,
               "cross_entropy: label smoothing must be from 0 to 1, got " +
                   std::to_string(smoothing) + ".");
    args.dtype = dtype_of(z);
    args.rows = z.size(0), args.classes = z.size(1);
    args.ignored = ignored;
    args.smoothing = smoothing;
    args.z = keep(z);
    args.target = static_cast<const int64_t*>(keep(target));
    if (!z.is_cuda()) check_targets();
  }

  void check_targets() const {
    for (int64_t i = 0; i < args.rows; ++i) {
      const int64_t y = args.target[i];
      FM_REQUIRE(y == args.ignored || (y >= 0 && y < args.classes),
                 "cross_entropy: expected class indices from 0 to " +
                     std::to_string(args.classes - 1) + ", or ignore_index " +
                     std::to_string(args.ignored) + ", got " + std::to_string(y) + ".");
    }
  }

  const void* keep(const Tensor& t) {
    copies.push_back(dense(t));
    return copies.back().const_data_ptr();
  }
  const void* per_row(const Tensor& t, const char* name) {
    FM_REQUIRE(has_shape(t, Ints{args.rows}) && t.scalar_type() == acc_type(z) && same_device(t, z),
               std::string("cross_entropy: ") + name + " " + shape_of(t) +
                   " must have one value per row of logits " + shape_of(z) +
                   ", in the accumulation dtype.");
    return keep(t);
  }
  void read_logsumexp(const Tensor& t) {
    args.logsumexp = const_cast<void*>(per_row(t, "logsumexp"));
  }
  const void* direction(const Tensor& t) {
    FM_REQUIRE(has_shape(t, z.sizes()) && same_kind(t, z),
               "cross_entropy: the direction " + shape_of(t) + " does not match logits " +
                   shape_of(z) + " of its dtype and device.");
    return keep(t);
  }
  Tensor rows() const { return empty(z, {args.rows}, acc_type(z)); }
  Tensor logits() const { return empty(z, {args.rows, args.classes}, z.scalar_type()); }
};

// The loss of each row, and logsumexp of its logits.
Tensors cross_entropy_forward(const Tensor& z, const Tensor& target, int64_t ignored,
                              double smoothing) {
  Input in(z, target, ignored, smoothing);
  Tensors out{in.rows(), in.rows()};
  in.args.logsumexp = out[1].mutable_data_ptr();
  const CrossEntropyForwardArgs args{in.args, out[0].mutable_data_ptr()};
  run(
      z, kOp, [&](const Parallel& p) { cpu::kernels().cross_entropy_forward(args, p); },
      FM_CUDA(cross_entropy_forward(args, stream)));
  return out;
}

Tensor cross_entropy_backward(const Tensor& dloss, const Tensor& z, const Tensor& target,
                              const Tensor& logsumexp, int64_t ignored, double smoothing) {
  Input in(z, target, ignored, smoothing);
  in.read_logsumexp(logsumexp);
  const void* upstream = in.per_row(dloss, "the gradient of the loss");
  Tensor dz = in.logits();
  const CrossEntropyBackwardArgs args{in.args, upstream, dz.mutable_data_ptr()};
  run(
      z, kOp, [&](const Parallel& p) { cpu::kernels().cross_entropy_backward(args, p); },
      FM_CUDA(cross_entropy_backward(args, stream)));
  return dz;
}

// The tangent of the loss.
Tensor cross_entropy_tangent(const Tensor& tz, const Tensor& z, const Tensor& target,
                             const Tensor& logsumexp, int64_t ignored, double smoothing) {
  Input in(z, target, ignored, smoothing);
  in.read_logsumexp(logsumexp);
  CrossEntropySecondArgs args{};
  Tensor tloss = in.rows();
  args.tz = in.direction(tz);
  args.in = in.args;
  args.tloss = tloss.mutable_data_ptr();
  run(
      z, kOp, [&](const Parallel& p) { cpu::kernels().cross_entropy_second(args, p); },
      FM_CUDA(cross_entropy_second(args, stream)));
  return tloss;
}

// The same, and the tangent of the gradient of the logits, along tdloss as well.
Tensors cross_entropy_second(const Tensor& dloss, const Optional& tdloss, const Tensor& tz,
                             const Tensor& z, const Tensor& target, const Tensor& logsumexp,
                             int64_t ignored, double smoothing) {
  Input in(z, target, ignored, smoothing);
  in.read_logsumexp(logsumexp);
  CrossEntropySecondArgs args{};
  Tensors out{in.rows(), in.logits()};
  args.dloss = in.per_row(dloss, "the gradient of the loss");
  if (tdloss) args.tdloss = in.per_row(*tdloss, "the direction of the loss's gradient");
  args.tz = in.direction(tz);
  args.in = in.args;
  args.tloss = out[0].mutable_data_ptr();
  args.dz = out[1].mutable_data_ptr();
  run(
      z, kOp, [&](const Parallel& p) { cpu::kernels().cross_entropy_second(args, p); },
      FM_CUDA(cross_entropy_second(args, stream)));
  return out;
}

}  // namespace
}  // namespace fastmeta

STABLE_TORCH_LIBRARY_FRAGMENT(fastmeta, m) {
  m.def("cross_entropy_forward(Tensor z, Tensor target, int ignored, float smoothing) -> Tensor[]");
  m.def(
      "cross_entropy_backward(Tensor dloss, Tensor z, Tensor target, Tensor logsumexp, "
      "int ignored, float smoothing) -> Tensor");
  m.def(
      "cross_entropy_tangent(Tensor tz, Tensor z, Tensor target, Tensor logsumexp, int ignored, "
      "float smoothing) -> Tensor");
  m.def(
      "cross_entropy_second(Tensor dloss, Tensor? tdloss, Tensor tz, Tensor z, Tensor target, "
      "Tensor logsumexp, int ignored, float smoothing) -> Tensor[]");
}

FM_KERNELS(m) {
  m.impl("cross_entropy_forward", TORCH_BOX(&fastmeta::cross_entropy_forward));
  m.impl("cross_entropy_backward", TORCH_BOX(&fastmeta::cross_entropy_backward));
  m.impl("cross_entropy_tangent", TORCH_BOX(&fastmeta::cross_entropy_tangent));
  m.impl("cross_entropy_second", TORCH_BOX(&fastmeta::cross_entropy_second));
}
