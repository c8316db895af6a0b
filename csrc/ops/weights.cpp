// The weight ops: schemas, checks, allocation and dispatch.
#include "fastmeta/weights.h"

#include "cpu/kernels.h"
#include "ops/tensors.h"

namespace fastmeta {
namespace {

Tensor gsl_coefficients(const Tensor& stats, const Tensor& weight, const Tensor& rate, double lam_c,
                        double lam_2, int64_t magnitude, double ratio, double eps, double noise) {
  FM_REQUIRE(
      stats.dim() == 3 && stats.size(2) == 3 && acc_type(stats) == stats.scalar_type(),
      "gsl_coefficients: stats must be the float32 or float64 (tasks, segments, 3) result of "
      "row_similarity, got shape " +
          shape_of(stats) + ".");
  FM_REQUIRE(
      same_kind(stats, weight) && same_kind(stats, rate) && weight.dim() == 1 &&
          weight.size(0) == stats.size(0) && rate.numel() == 1,
      "gsl_coefficients: weight must have one value per task and rate one value, of the dtype and "
      "device of stats.");
  FM_REQUIRE(magnitude >= 0 && magnitude <= 3, "gsl_coefficients: unknown magnitude rule.");
  const Tensor s = dense(stats), w = dense(weight);
  Tensor out = empty(stats, {stats.size(0), stats.size(1), 2}, stats.scalar_type());
  const GslArgs args{dtype_of(stats),
                     s.const_data_ptr(),
                     w.const_data_ptr(),
                     rate.const_data_ptr(),
                     stats.size(0),
                     stats.size(1),
                     {lam_c, lam_2, static_cast<Magnitude>(magnitude), ratio, eps, noise},
                     out.mutable_data_ptr()};
  run(
      stats, "gsl_coefficients", [&](const Parallel&) { cpu::gsl_coefficients(args); },
      FM_CUDA(gsl_coefficients(args, stream)));
  return out;
}

Tensor task_weights(const Tensor& stats, int64_t rule, double lam_c, double lam_2, double tau) {
  FM_REQUIRE(stats.dim() == 2 && stats.size(1) == 2 && acc_type(stats) == stats.scalar_type(),
             "task_weights: stats must be the float32 or float64 (tasks, 2) result of "
             "mean_similarity, got shape " +
                 shape_of(stats) + ".");
  FM_REQUIRE(rule >= 0 && rule <= 2, "task_weights: unknown rule.");
  const Tensor s = dense(stats);
  Tensor out = empty(stats, {stats.size(0)}, stats.scalar_type());
  const TaskWeightArgs args{dtype_of(stats),
                            s.const_data_ptr(),
                            stats.size(0),
                            static_cast<TaskWeight>(rule),
                            lam_c,
                            lam_2,
                            tau,
                            out.mutable_data_ptr()};
  run(
      stats, "task_weights", [&](const Parallel&) { cpu::task_weights(args); },
      FM_CUDA(task_weights(args, stream)));
  return out;
}

}  // namespace
}  // namespace fastmeta

STABLE_TORCH_LIBRARY_FRAGMENT(fastmeta, m) {
  m.def(
      "gsl_coefficients(Tensor stats, Tensor weight, Tensor rate, float lam_c, float lam_2, "
      "int magnitude, float ratio, float eps, float noise) -> Tensor");
  m.def("task_weights(Tensor stats, int rule, float lam_c, float lam_2, float tau) -> Tensor");
}

FM_KERNELS(m) {
  m.impl("gsl_coefficients", TORCH_BOX(&fastmeta::gsl_coefficients));
  m.impl("task_weights", TORCH_BOX(&fastmeta::task_weights));
}
