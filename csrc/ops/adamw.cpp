// AdamW's update and its adjoint: schemas, checks and allocation.
#include "fastmeta/adamw.h"

#include <cmath>

#include "cpu/kernels.h"
#include "ops/tensors.h"

namespace fastmeta {
namespace {

struct Settings {
  double lr, beta_1, beta_2, eps, weight_decay;
  int64_t step;  // from 0

  AdamwRates<double> rates() const {
    const double number = static_cast<double>(step + 1);
    const double bias_1 = 1 - std::pow(beta_1, number), bias_2 = 1 - std::pow(beta_2, number);
    return {
        1 - lr * weight_decay, lr / bias_1, beta_1, 1 - beta_1, beta_2, 1 - beta_2, bias_2, eps};
  }
};

// Items of the lists, which have one tensor per parameter each; outputs of the same shapes are
// added to `results`, one list after another.
std::vector<AdamwItem> items_of(const char* op, const std::vector<const Tensors*>& lists,
                                int outputs, Tensors& keep, Tensors& results) {
  const Tensors& like = *lists[0];
  const size_t count = like.size();
  for (const Tensors* list : lists)
    FM_REQUIRE(list->size() == count && count > 0,
               std::string(op) + ": all lists must have one non-zero length; got " +
                   std::to_string(count) + " and " + std::to_string(list->size()) + ".");
  std::vector<AdamwItem> items(count);
  for (size_t k = 0; k < count; ++k) {
    items[k].n = like[k].numel();
    for (size_t j = 0; j < lists.size(); ++j) {
      const Tensor& t = (*lists[j])[k];
      FM_REQUIRE(same_kind(t, like[0]) && has_shape(t, like[k].sizes()),
                 std::string(op) + ": tensor " + std::to_string(k) + " of list " +
                     std::to_string(j) + " " + shape_of(t) + " must have the shape " +
                     shape_of(like[k]) + ", and all tensors one dtype and device.");
      keep.push_back(dense(t));
      items[k].in[j] = keep.back().const_data_ptr();
    }
  }
  for (int j = 0; j < outputs; ++j)
    for (size_t k = 0; k < count; ++k) {
      const auto sizes = like[k].sizes();
      results.push_back(empty(like[k], Ints(sizes.begin(), sizes.end()), like[k].scalar_type()));
      items[k].out[j] = results.back().mutable_data_ptr();
    }
  return items;
}

Tensors adamw_step(const Tensors& theta, const Tensors& grad, const Tensors& mean,
                   const Tensors& square, double lr, double beta_1, double beta_2, double eps,
                   double weight_decay, int64_t step) {
  Tensors keep, results;
  const auto items = items_of("adamw_step", {&theta, &grad, &mean, &square}, 3, keep, results);
  const Settings settings{lr, beta_1, beta_2, eps, weight_decay, step};
  const AdamwArgs args{dtype_of(theta[0]), settings.rates(), items.data(),
                       static_cast<int64_t>(items.size())};
  run(
      theta[0], "adamw_step", [&](const Parallel& p) { cpu::kernels().adamw_step(args, p); },
      FM_CUDA(adamw_step(args, stream)));
  return results;
}

Tensors adamw_adjoint(const Tensors& grad, const Tensors& mean, const Tensors& square,
                      const Tensors& d_theta, const Tensors& d_mean, const Tensors& d_square,
                      double lr, double beta_1, double beta_2, double eps, double weight_decay,
                      int64_t step) {
  Tensors keep, results;
  const auto items = items_of(
      "adamw_adjoint", {&grad, &mean, &square, &d_theta, &d_mean, &d_square}, 4, keep, results);
  const Settings settings{lr, beta_1, beta_2, eps, weight_decay, step};
  const AdamwArgs args{dtype_of(grad[0]), settings.rates(), items.data(),
                       static_cast<int64_t>(items.size())};
  run(
      grad[0], "adamw_adjoint", [&](const Parallel& p) { cpu::kernels().adamw_adjoint(args, p); },
      FM_CUDA(adamw_adjoint(args, stream)));
  return results;
}

}  // namespace
}  // namespace fastmeta

STABLE_TORCH_LIBRARY_FRAGMENT(fastmeta, m) {
  m.def(
      "adamw_step(Tensor[] theta, Tensor[] grad, Tensor[] mean, Tensor[] square, float lr, "
      "float beta_1, float beta_2, float eps, float weight_decay, int step) -> Tensor[]");
  m.def(
      "adamw_adjoint(Tensor[] grad, Tensor[] mean, Tensor[] square, Tensor[] d_theta, "
      "Tensor[] d_mean, Tensor[] d_square, float lr, float beta_1, float beta_2, float eps, "
      "float weight_decay, int step) -> Tensor[]");
}

FM_KERNELS(m) {
  m.impl("adamw_step", TORCH_BOX(&fastmeta::adamw_step));
  m.impl("adamw_adjoint", TORCH_BOX(&fastmeta::adamw_adjoint));
}
