#include "emulation/kernels.h"

#include "emulation/cuda.h"
#include "emulation/launch.h"
#include "emulation/mma.h"
// The kernels need the names above.
#include "cuda/activation.cuh"
#include "cuda/adamw.cuh"
#include "cuda/attention_launch.cuh"
#include "cuda/combine.cuh"
#include "cuda/cross_entropy.cuh"
#include "cuda/gram.cuh"
#include "cuda/head_similarity.cuh"
#include "cuda/mlp.cuh"
#include "cuda/norm.cuh"
#include "cuda/norm_backward.cuh"
#include "cuda/norm_second.cuh"
#include "cuda/pack.cuh"
#include "cuda/row_norm.cuh"
#include "cuda/similarity.cuh"
#include "cuda/step.cuh"
#include "cuda/weights.cuh"
#include "emulation/faults.h"

namespace fastmeta::emulation {

void gram(const GramArgs& args, uint64_t seed) {
  cuda::launch_gram(args, Launch(seed));
}

void row_similarity(const RowSimilarityArgs& args, uint64_t seed) {
  cuda::launch_row_similarity(args, Launch(seed));
}

void mean_similarity(const MeanSimilarityArgs& args, uint64_t seed) {
  cuda::launch_mean_similarity(args, Launch(seed));
}

void combine(const CombineArgs& args, uint64_t seed) {
  cuda::launch_combine(args, Launch(seed));
}

void inner_step(const StepArgs& args, uint64_t seed) {
  cuda::launch_inner_step(args, Launch(seed));
}

void adamw_step(const AdamwArgs& args, uint64_t seed) {
  cuda::launch_adamw_step(args, Launch(seed));
}

void adamw_adjoint(const AdamwArgs& args, uint64_t seed) {
  cuda::launch_adamw_adjoint(args, Launch(seed));
}

void hvp_perturb(const PerturbArgs& args, uint64_t seed) {
  cuda::launch_hvp_perturb(args, Launch(seed));
}

void hvp_difference(const DifferenceArgs& args, uint64_t seed) {
  cuda::launch_hvp_difference(args, Launch(seed));
}

void pack(const Copy* copies, int64_t count, uint64_t seed) {
  cuda::launch_pack(copies, count, Launch(seed));
}

void gsl_coefficients(const GslArgs& args, uint64_t seed) {
  cuda::launch_gsl_coefficients(args, Launch(seed));
}

void task_weights(const TaskWeightArgs& args, uint64_t seed) {
  cuda::launch_task_weights(args, Launch(seed));
}

void mlp_step(const MlpArgs& args, const MlpPlan& plan, void* scratch, uint64_t seed) {
  cuda::launch_mlp_step(args, plan, scratch, Launch(seed));
}

void head_similarity(const HeadSimilarityArgs& args, const HeadPlan& plan, void* scratch,
                     uint64_t seed) {
  cuda::launch_head_similarity(args, plan, scratch, Launch(seed));
}

void norm_forward(const NormForwardArgs& args, double* partial, uint64_t seed) {
  cuda::launch_norm_forward(args, partial, Launch(seed));
}

void norm_backward(const NormBackwardArgs& args, const NormScratch& scratch, uint64_t seed) {
  cuda::launch_norm_backward(args, scratch, Launch(seed));
}

void norm_second(const NormSecondArgs& args, const NormScratch& scratch, uint64_t seed) {
  cuda::launch_norm_second(args, scratch, Launch(seed));
}

void row_norm_forward(const RowNormForwardArgs& args, uint64_t seed) {
  cuda::launch_row_norm_forward(args, Launch(seed));
}

void row_norm_backward(const RowNormBackwardArgs& args, uint64_t seed) {
  cuda::launch_row_norm_backward(args, Launch(seed));
}

void row_norm_second(const RowNormSecondArgs& args, uint64_t seed) {
  cuda::launch_row_norm_second(args, Launch(seed));
}

void cross_entropy_forward(const CrossEntropyForwardArgs& args, uint64_t seed) {
  cuda::launch_cross_entropy_forward(args, Launch(seed));
}

void cross_entropy_backward(const CrossEntropyBackwardArgs& args, uint64_t seed) {
  cuda::launch_cross_entropy_backward(args, Launch(seed));
}

void cross_entropy_second(const CrossEntropySecondArgs& args, uint64_t seed) {
  cuda::launch_cross_entropy_second(args, Launch(seed));
}

void activation_forward(const ActivationForwardArgs& args, uint64_t seed) {
  cuda::launch_activation_forward(args, Launch(seed));
}

void activation_backward(const ActivationBackwardArgs& args, uint64_t seed) {
  cuda::launch_activation_backward(args, Launch(seed));
}

void activation_second(const ActivationSecondArgs& args, uint64_t seed) {
  cuda::launch_activation_second(args, Launch(seed));
}

void attention_forward(const AttentionForwardArgs& args, int capability, uint64_t seed) {
  cuda::launch_attention_forward(args, Launch(seed, 0, capability));
}

void attention_backward(const AttentionBackwardArgs& args, int capability, uint64_t seed) {
  cuda::launch_attention_backward(args, Launch(seed, 0, capability));
}

void attention_tangent(const AttentionTangentArgs& args, int capability, uint64_t seed) {
  cuda::launch_attention_tangent(args, Launch(seed, 0, capability));
}

void attention_second(const AttentionSecondArgs& args, int capability, uint64_t seed) {
  cuda::launch_attention_second(args, Launch(seed, 0, capability));
}

void faulty(const char* name, const float* in, int n, float* out, uint64_t seed) {
  const Launch launch(seed, faults::kSide * sizeof(float));
  for (const faults::Entry& entry : faults::kAll)
    if (!strcmp(entry.name, name)) {
      const int blocks = (n + faults::kSide - 1) / faults::kSide;
      faults::common.reset();
      return launch(entry.kernel, blocks, faults::kSide, in, n, out);
    }
  throw std::invalid_argument(std::string("no faulty kernel is called ") + name);
}

}  // namespace fastmeta::emulation
