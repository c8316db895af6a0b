// The elementwise activation ops: schemas, checks and allocation; see library.cpp on gradients.
#include "fastmeta/activation.h"

#include "cpu/kernels.h"
#include "ops/tensors.h"

namespace fastmeta {
namespace {

constexpr char kOp[] = "activation";

Activation activation_of(int64_t kind) {
  FM_REQUIRE(kind == static_cast<int64_t>(Activation::silu) ||
                 kind == static_cast<int64_t>(Activation::gelu) ||
                 kind == static_cast<int64_t>(Activation::gelu_tanh),
             "activation: expected the number of silu, gelu or gelu_tanh, got " +
                 std::to_string(kind) + ".");
  return static_cast<Activation>(kind);
}

Tensor like(const Tensor& x) {
  const auto sizes = x.sizes();
  return empty(x, Ints(sizes.begin(), sizes.end()), x.scalar_type());
}

Tensor read(const Tensor& t, const Tensor& x, const char* name) {
  FM_REQUIRE(has_shape(t, x.sizes()) && same_kind(t, x),
             std::string("activation: ") + name + " " + shape_of(t) + " does not match the input " +
                 shape_of(x) + " of its dtype and device.");
  return dense(t);
}

Tensor activation_forward(const Tensor& x, int64_t kind) {
  const Tensor input = dense(x);
  Tensor out = like(x);
  const ActivationForwardArgs args{dtype_of(x), activation_of(kind), x.numel(),
                                   input.const_data_ptr(), out.mutable_data_ptr()};
  run(
      x, kOp, [&](const Parallel& p) { cpu::kernels().activation_forward(args, p); },
      FM_CUDA(activation_forward(args, stream)));
  return out;
}

Tensor activation_backward(const Tensor& dout, const Tensor& x, int64_t kind) {
  const Tensor input = dense(x), upstream = read(dout, x, "the gradient of the output");
  Tensor dx = like(x);
  const ActivationBackwardArgs args{dtype_of(x),
                                    activation_of(kind),
                                    x.numel(),
                                    input.const_data_ptr(),
                                    upstream.const_data_ptr(),
                                    dx.mutable_data_ptr()};
  run(
      x, kOp, [&](const Parallel& p) { cpu::kernels().activation_backward(args, p); },
      FM_CUDA(activation_backward(args, stream)));
  return dx;
}

// `tout`: whether to return the tangent of the output, too.
Tensors second(const Tensor& dout, const Tensor* tdout, const Tensor& tx, const Tensor& x,
               int64_t kind, bool tout) {
  const Tensor input = dense(x), upstream = read(dout, x, "the gradient of the output");
  const Tensor direction = read(tx, x, "the direction of the input");
  Tensors keep, out{like(x)};
  if (tdout) keep.push_back(read(*tdout, x, "the direction of the output's gradient"));
  if (tout) out.push_back(like(x));
  const ActivationSecondArgs args{dtype_of(x),
                                  activation_of(kind),
                                  x.numel(),
                                  input.const_data_ptr(),
                                  upstream.const_data_ptr(),
                                  tdout ? keep[0].const_data_ptr() : nullptr,
                                  direction.const_data_ptr(),
                                  tout ? out[1].mutable_data_ptr() : nullptr,
                                  out[0].mutable_data_ptr()};
  run(
      x, kOp, [&](const Parallel& p) { cpu::kernels().activation_second(args, p); },
      FM_CUDA(activation_second(args, stream)));
  return out;
}

// The tangents of the gradient of the input and of the output along tx.
Tensors activation_second(const Tensor& dout, const Tensor& tx, const Tensor& x, int64_t kind) {
  return second(dout, nullptr, tx, x, kind, true);
}

// The tangent of the gradient of the input along tdout and tx.
Tensor activation_backward_tangent(const Tensor& dout, const Tensor& tdout, const Tensor& tx,
                                   const Tensor& x, int64_t kind) {
  return second(dout, &tdout, tx, x, kind, false)[0];
}

}  // namespace
}  // namespace fastmeta

STABLE_TORCH_LIBRARY_FRAGMENT(fastmeta, m) {
  m.def("activation_forward(Tensor x, int kind) -> Tensor");
  m.def("activation_backward(Tensor dout, Tensor x, int kind) -> Tensor");
  m.def("activation_second(Tensor dout, Tensor tx, Tensor x, int kind) -> Tensor[]");
  m.def(
      "activation_backward_tangent(Tensor dout, Tensor tdout, Tensor tx, Tensor x, int kind) "
      "-> Tensor");
}

FM_KERNELS(m) {
  m.impl("activation_forward", TORCH_BOX(&fastmeta::activation_forward));
  m.impl("activation_backward", TORCH_BOX(&fastmeta::activation_backward));
  m.impl("activation_second", TORCH_BOX(&fastmeta::activation_second));
  m.impl("activation_backward_tangent", TORCH_BOX(&fastmeta::activation_backward_tangent));
}
