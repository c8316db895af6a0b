// The norm ops: schemas, checks, allocation and dispatch; see library.cpp on gradients.
#include "cpu/kernels.h"
#include "fastmeta/norm_plan.h"
#include "ops/images.h"

namespace fastmeta {
namespace {

constexpr char kOp[] = "batch_norm_relu";

Ints shape_like(const Tensor& x, bool pool) {
  return {x.size(0), x.size(1), pool ? x.size(2) / 2 : x.size(2), pool ? x.size(3) / 2 : x.size(3)};
}

void require_weight(const Tensor& t, const Tensor& x) {
  const int64_t dims = t.dim();
  FM_REQUIRE((dims == 1 || dims == 2) && t.size(dims - 1) == x.size(1) && same_kind(t, x),
             "batch_norm_relu: weight must have one value per channel, (C,), or one per channel of "
             "each group of images, (G, C), of the input's dtype and device; got shape " +
                 shape_of(t) + " for an input " + shape_of(x) + ".");
  FM_REQUIRE(dims == 1 || (t.size(0) > 0 && x.size(0) % t.size(0) == 0),
             "batch_norm_relu: weight " + shape_of(t) + " needs " + std::to_string(t.size(0)) +
                 " groups of equal size, into which an input " + shape_of(x) +
                 " cannot be divided. Give every group the same number of images.");
}

void require_like(const Tensor& t, const Tensor& weight, const char* name) {
  FM_REQUIRE(has_shape(t, weight.sizes()) && same_kind(t, weight),
             std::string("batch_norm_relu: ") + name +
                 " must have weight's shape, dtype and device; got shape " + shape_of(t) +
                 " for a weight " + shape_of(weight) + ".");
}

void require_shape(const Tensor& t, const Tensor& x, const Ints& shape, const char* name) {
  FM_REQUIRE(has_shape(t, shape) && same_kind(t, x), std::string("batch_norm_relu: ") + name + " " +
                                                         shape_of(t) + " does not match an input " +
                                                         shape_of(x) + " of its dtype and device.");
}

Tensor images(const Tensor& x) {
  FM_REQUIRE(
      x.dim() == 4 && x.numel() > 0,
      "batch_norm_relu: expected a non-empty (N, C, H, W) input, got shape " + shape_of(x) + ".");
  return channels_last(x);
}

// Dense tensors, kept alive, and the arguments of the kernels that point to them.
struct Input {
  Tensor x, weight, bias;
  NormInput args;

  Input(const Tensor& x_, const Tensor& weight_, const Tensor& bias_, double eps, bool pool)
      : x(images(x_)), weight(dense(weight_)), bias(dense(bias_)), args{} {
    FM_REQUIRE(
        x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double,
        "batch_norm_relu: the input must be float32 or float64. Convert it with .to(), or use "
        "torch's batch_norm.");
    FM_REQUIRE(
        !pool || (x.size(2) >= 2 && x.size(3) >= 2),
        "batch_norm_relu: 2x2 pooling needs planes of 2x2 or more, got shape " + shape_of(x) + ".");
    require_weight(weight, x);
    require_like(bias, weight, "bias");
    const int64_t groups = weight.dim() == 2 ? weight.size(0) : 1;
    FM_REQUIRE(!x.is_cuda() || x.size(0) / groups * x.size(2) * x.size(3) <= kMaxNormPixels,
               "batch_norm_relu: a group has at most 2^30 pixels on a GPU, got an input " +
                   shape_of(x) + ". Use torch's batch_norm.");
    args = {dtype_of(x),
            groups,
            x.size(0) / groups,
            x.size(1),
            x.size(2),
            x.size(3),
            eps,
            pool,
            x.const_data_ptr(),
            weight.const_data_ptr(),
            bias.const_data_ptr()};
  }
};

// Scratch between the passes of the CUDA kernels; none on the CPU.
struct Scratch {
  Tensors parts;
  NormScratch pointers{};

  Scratch(const Input& in, bool pool, int sums, int coefs) {
    if (!in.x.is_cuda()) return;
    const int64_t partials = count_norm_partials(in.args, norm_plan(in.args, pool), sums);
    parts = {empty(in.x, {partials}, ScalarType::Double),
             empty(in.x, {coefs, in.weight.numel()}, in.x.scalar_type())};
    pointers = {static_cast<double*>(parts[0].mutable_data_ptr()), parts[1].mutable_data_ptr()};
  }
};

Tensors norm_forward(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps,
                     bool pool) {
  const Input in(x, weight, bias, eps, pool);
  Tensors out{empty_images(x, shape_like(x, pool)), torch::stable::empty_like(in.weight),
              torch::stable::empty_like(in.weight)};
  const NormForwardArgs args{in.args, out[0].mutable_data_ptr(), out[1].mutable_data_ptr(),
                             out[2].mutable_data_ptr()};
  const Scratch scratch(in, false, kNormMoments, 0);
  run(
      x, kOp, [&](const Parallel& p) { cpu::kernels().norm_forward(args, p); },
      FM_CUDA(norm_forward(args, scratch.pointers.partial, stream)));
  return out;
}

Tensors norm_backward(const Tensor& dz, const Tensor& x, const Tensor& weight, const Tensor& bias,
                      const Tensor& mean, const Tensor& var, double eps, bool pool) {
  const Input in(x, weight, bias, eps, pool);
  require_shape(dz, x, shape_like(x, pool), "the gradient of the output");
  require_like(mean, weight, "mean");
  require_like(var, weight, "var");
  const Tensor parts[] = {dense(mean), dense(var), channels_last(dz)};
  Tensors out{empty_images(x, shape_like(x, false)), torch::stable::empty_like(in.weight),
              torch::stable::empty_like(in.weight)};
  const NormBackwardArgs args{in.args,
                              parts[0].const_data_ptr(),
                              parts[1].const_data_ptr(),
                              parts[2].const_data_ptr(),
                              out[0].mutable_data_ptr(),
                              out[1].mutable_data_ptr(),
                              out[2].mutable_data_ptr()};
  const Scratch scratch(in, pool, kNormBackwardSums, kNormBackwardCoefs);
  run(
      x, kOp, [&](const Parallel& p) { cpu::kernels().norm_backward(args, p); },
      FM_CUDA(norm_backward(args, scratch.pointers, stream)));
  return out;
}

NormSecondArgs second_args(const Input& in, const Tensor* parts) {
  return {in.args,
          parts[0].const_data_ptr(),
          parts[1].const_data_ptr(),
          nullptr,
          parts[2].const_data_ptr(),
          parts[3].const_data_ptr(),
          parts[4].const_data_ptr(),
          nullptr,
          nullptr,
          nullptr};
}

void run_second(const Input& in, const NormSecondArgs& args) {
  const Scratch scratch(in, args.in.pool, kNormSecondSums, kNormSecondCoefs);
  run(
      in.x, kOp, [&](const Parallel& p) { cpu::kernels().norm_second(args, p); },
      FM_CUDA(norm_second(args, scratch.pointers, stream)));
}

void require_direction(const Tensor& u, const Tensor& p, const Tensor& q, const Tensor& x,
                       const Tensor& weight, const Tensor& mean, const Tensor& var) {
  require_shape(u, x, shape_like(x, false), "the direction of the input");
  require_like(p, weight, "the direction of weight");
  require_like(q, weight, "the direction of bias");
  require_like(mean, weight, "mean");
  require_like(var, weight, "var");
}

// The tangent of the output along (u, p, q).
Tensor norm_tangent(const Tensor& u, const Tensor& p, const Tensor& q, const Tensor& x,
                    const Tensor& weight, const Tensor& bias, const Tensor& mean, const Tensor& var,
                    double eps, bool pool) {
  const Input in(x, weight, bias, eps, pool);
  require_direction(u, p, q, x, weight, mean, var);
  const Tensor parts[] = {dense(mean), dense(var), channels_last(u), dense(p), dense(q)};
  Tensor out = empty_images(x, shape_like(x, pool));
  NormSecondArgs args = second_args(in, parts);
  args.out_z = out.mutable_data_ptr();
  run_second(in, args);
  return out;
}

// The same, and the tangents of the gradients of input and weight at constant dz.
Tensors norm_second(const Tensor& dz, const Tensor& u, const Tensor& p, const Tensor& q,
                    const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& mean,
                    const Tensor& var, double eps, bool pool) {
  const Input in(x, weight, bias, eps, pool);
  require_shape(dz, x, shape_like(x, pool), "the gradient of the output");
  require_direction(u, p, q, x, weight, mean, var);
  const Tensor gradient = channels_last(dz);
  const Tensor parts[] = {dense(mean), dense(var), channels_last(u), dense(p), dense(q)};
  Tensors out{empty_images(x, shape_like(x, pool)), empty_images(x, shape_like(x, false)),
              torch::stable::empty_like(in.weight)};
  NormSecondArgs args = second_args(in, parts);
  args.dz = gradient.const_data_ptr();
  args.out_z = out[0].mutable_data_ptr();
  args.out_x = out[1].mutable_data_ptr();
  args.out_weight = out[2].mutable_data_ptr();
  run_second(in, args);
  return out;
}

}  // namespace
}  // namespace fastmeta

STABLE_TORCH_LIBRARY_FRAGMENT(fastmeta, m) {
  m.def(
      "norm_forward(Tensor x, Tensor weight, Tensor bias, float eps, bool pool) "
      "-> Tensor[]");
  m.def(
      "norm_backward(Tensor dz, Tensor x, Tensor weight, Tensor bias, Tensor mean, Tensor var, "
      "float eps, bool pool) -> Tensor[]");
  m.def(
      "norm_tangent(Tensor u, Tensor p, Tensor q, Tensor x, Tensor weight, Tensor bias, "
      "Tensor mean, Tensor var, float eps, bool pool) -> Tensor");
  m.def(
      "norm_second(Tensor dz, Tensor u, Tensor p, Tensor q, Tensor x, Tensor weight, Tensor bias, "
      "Tensor mean, Tensor var, float eps, bool pool) -> Tensor[]");
}

FM_KERNELS(m) {
  m.impl("norm_forward", TORCH_BOX(&fastmeta::norm_forward));
  m.impl("norm_backward", TORCH_BOX(&fastmeta::norm_backward));
  m.impl("norm_tangent", TORCH_BOX(&fastmeta::norm_tangent));
  m.impl("norm_second", TORCH_BOX(&fastmeta::norm_second));
}
