#include "fastmeta/weights.h"

namespace fastmeta::cpu {
namespace {

template <class A>
void gsl(const GslArgs& args) {
  for (int64_t k = 0; k < args.rows * args.segments; ++k) gsl_coefficients_core<A>(args, k);
}

template <class A>
void weights(const TaskWeightArgs& args) {
  task_weights_core(static_cast<const A*>(args.stats), args.rows, args.rule,
                    static_cast<A>(args.lam_c), static_cast<A>(args.lam_2),
                    static_cast<A>(args.tau), static_cast<A*>(args.out));
}

}  // namespace

void gsl_coefficients(const GslArgs& args) {
  args.dtype == DType::f64 ? gsl<double>(args) : gsl<float>(args);
}

void task_weights(const TaskWeightArgs& args) {
  args.dtype == DType::f64 ? weights<double>(args) : weights<float>(args);
}

}  // namespace fastmeta::cpu
