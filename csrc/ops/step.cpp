// The inner step and the two halves of a central difference: schemas, checks, allocation and
// dispatch.
#include "cpu/kernels.h"
#include "ops/overlap.h"
#include "ops/tensors.h"

namespace fastmeta {
namespace {

// out[k] = theta[k] - alpha[k] * grad[k]; alpha[k] holds one value, or one per element of
// theta[k].
// `fresh`: the outputs are newly allocated and cannot overlap.
void step_items(const Tensors& out, const Tensors& theta, const Tensors& grad, const Tensors& alpha,
                const Ints& frozen, bool fresh) {
  const size_t count = theta.size();
  FM_REQUIRE(grad.size() == count && alpha.size() == count && frozen.size() == count && count > 0,
             "inner_step: theta, grad, alpha and frozen must have one non-zero length; got " +
                 std::to_string(count) + ", " + std::to_string(grad.size()) + ", " +
                 std::to_string(alpha.size()) + " and " + std::to_string(frozen.size()) + ".");
  std::vector<StepItem> items;
  Tensors keep;  // contiguous copies live until the launch
  for (size_t k = 0; k < count; ++k) {
    const std::string name = "inner_step: tensor " + std::to_string(k);
    FM_REQUIRE(same_kind(theta[k], theta[0]) && same_kind(grad[k], theta[0]),
               name + ": all parameters and gradients must have one dtype and one device.");
    FM_REQUIRE(has_shape(grad[k], theta[k].sizes()), name + ": the gradient " + shape_of(grad[k]) +
                                                         " must have the parameter's shape " +
                                                         shape_of(theta[k]) + ".");
    FM_REQUIRE(
        alpha[k].scalar_type() == acc_type(theta[0]) && alpha[k].is_cuda() == theta[0].is_cuda() &&
            (alpha[k].numel() == 1 || has_shape(alpha[k], theta[k].sizes())),
        name +
            ": alpha must hold one value, or have the parameter's shape, in the accumulation dtype "
            "and on the parameter's device.");
    for (const Tensor* t : {&theta[k], &grad[k], &alpha[k]}) keep.push_back(dense(*t));
    const size_t last = keep.size();
    items.push_back({keep[last - 3].const_data_ptr(), keep[last - 2].const_data_ptr(),
                     keep[last - 1].const_data_ptr(), out[k].mutable_data_ptr(), theta[k].numel(),
                     alpha[k].numel() != 1, frozen[k] != 0});
  }
  if (!fresh) {
    std::vector<Span> targets, sources;
    for (size_t k = 0; k < count; ++k) targets.push_back(span_of(out[k], k));
    for (size_t k = 0; k < keep.size(); ++k) sources.push_back(span_of(keep[k], k / 3));
    require_disjoint(targets, sources, "inner_step_");
  }
  const StepArgs args{dtype_of(theta[0]), items.data(), static_cast<int64_t>(items.size())};
  run(
      theta[0], "inner_step", [&](const Parallel& p) { cpu::kernels().inner_step(args, p); },
      FM_CUDA(inner_step(args, stream)));
}

Tensors inner_step(const Tensors& theta, const Tensors& grad, const Tensors& alpha,
                   const Ints& frozen) {
  Tensors out;
  for (const Tensor& t : theta) {
    Ints shape;
    for (int64_t d = 0; d < t.dim(); ++d) shape.push_back(t.size(d));
    out.push_back(empty(t, shape, t.scalar_type()));
  }
  step_items(out, theta, grad, alpha, frozen, true);
  return out;
}

void inner_step_(const Tensors& theta, const Tensors& grad, const Tensors& alpha,
                 const Ints& frozen) {
  for (const Tensor& t : theta)
    FM_REQUIRE(t.is_contiguous(), "inner_step_: parameters updated in place must be contiguous.");
  step_items(theta, theta, grad, alpha, frozen, false);
}

void require_rows(const Tensors& same, const Tensor& eps, const char* op) {
  for (const Tensor& t : same)
    FM_REQUIRE(t.dim() == 2 && same_kind(t, same[0]) && t.size(0) == same[0].size(0) &&
                   t.size(1) == same[0].size(1),
               std::string(op) +
                   ": expected (tasks, parameters) buffers of one shape, dtype and "
                   "device; got " +
                   shape_of(same[0]) + " and " + shape_of(t) + ".");
  FM_REQUIRE(eps.dim() == 1 && eps.size(0) == same[0].size(0) &&
                 eps.scalar_type() == acc_type(same[0]) && eps.is_cuda() == same[0].is_cuda() &&
                 eps.get_device_index() == same[0].get_device_index(),
             std::string(op) + ": eps must hold one value per task in the accumulation dtype.");
}

Tensors hvp_perturb(const Tensor& theta, const Tensor& v, const Tensor& eps) {
  require_rows({theta, v}, eps, "hvp_perturb");
  const Tensor centre = dense(theta), direction = dense(v), radius = dense(eps);
  const Ints shape{theta.size(0), theta.size(1)};
  Tensors out{empty(theta, shape, theta.scalar_type()), empty(theta, shape, theta.scalar_type())};
  const PerturbArgs args{dtype_of(theta),
                         shape[0],
                         shape[1],
                         centre.const_data_ptr(),
                         direction.const_data_ptr(),
                         radius.const_data_ptr(),
                         out[0].mutable_data_ptr(),
                         out[1].mutable_data_ptr()};
  run(
      theta, "hvp_perturb", [&](const Parallel& p) { cpu::kernels().hvp_perturb(args, p); },
      FM_CUDA(hvp_perturb(args, stream)));
  return out;
}

Tensor hvp_difference(const Tensor& v, const Tensor& g_plus, const Tensor& g_minus,
                      const Tensor& eps, const Tensor& alpha) {
  require_rows({v, g_plus, g_minus}, eps, "hvp_difference");
  FM_REQUIRE(same_kind(alpha, eps) && (alpha.numel() == 1 || alpha.numel() == v.size(1)),
             "hvp_difference: alpha must hold one value, or one for each column, of eps' dtype.");
  const Tensor parts[] = {dense(v), dense(g_plus), dense(g_minus), dense(eps), dense(alpha)};
  Tensor out = empty(v, {v.size(0), v.size(1)}, v.scalar_type());
  const DifferenceArgs args{dtype_of(v),
                            v.size(0),
                            v.size(1),
                            parts[0].const_data_ptr(),
                            parts[1].const_data_ptr(),
                            parts[2].const_data_ptr(),
                            parts[3].const_data_ptr(),
                            parts[4].const_data_ptr(),
                            alpha.numel() != 1,
                            out.mutable_data_ptr()};
  run(
      v, "hvp_difference", [&](const Parallel& p) { cpu::kernels().hvp_difference(args, p); },
      FM_CUDA(hvp_difference(args, stream)));
  return out;
}

}  // namespace
}  // namespace fastmeta

STABLE_TORCH_LIBRARY_FRAGMENT(fastmeta, m) {
  m.def("inner_step(Tensor[] theta, Tensor[] grad, Tensor[] alpha, int[] frozen) -> Tensor[]");
  m.def("inner_step_(Tensor(a!)[] theta, Tensor[] grad, Tensor[] alpha, int[] frozen) -> ()");
  m.def("hvp_perturb(Tensor theta, Tensor v, Tensor eps) -> Tensor[]");
  m.def(
      "hvp_difference(Tensor v, Tensor g_plus, Tensor g_minus, Tensor eps, Tensor alpha) "
      "-> Tensor");
}

FM_KERNELS(m) {
  m.impl("inner_step", TORCH_BOX(&fastmeta::inner_step));
  m.impl("inner_step_", TORCH_BOX(&fastmeta::inner_step_));
  m.impl("hvp_perturb", TORCH_BOX(&fastmeta::hvp_perturb));
  m.impl("hvp_difference", TORCH_BOX(&fastmeta::hvp_difference));
}
