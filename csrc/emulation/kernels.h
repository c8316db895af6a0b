// The CUDA kernels on the CPU: like namespace cuda, but with a seed for the order of blocks and
// threads in place of a stream. Pointers are to host memory; faults throw Fault.
#pragma once

#include "fastmeta/activation.h"
#include "fastmeta/adamw.h"
#include "fastmeta/attention.h"
#include "fastmeta/combine.h"
#include "fastmeta/cross_entropy.h"
#include "fastmeta/gram.h"
#include "fastmeta/head_similarity_plan.h"
#include "fastmeta/mlp_plan.h"
#include "fastmeta/norm_plan.h"
#include "fastmeta/pack.h"
#include "fastmeta/row_norm.h"
#include "fastmeta/similarity.h"
#include "fastmeta/step.h"
#include "fastmeta/weights.h"

namespace fastmeta::emulation {

void gram(const GramArgs& args, uint64_t seed);
void row_similarity(const RowSimilarityArgs& args, uint64_t seed);
void mean_similarity(const MeanSimilarityArgs& args, uint64_t seed);
void combine(const CombineArgs& args, uint64_t seed);
void inner_step(const StepArgs& args, uint64_t seed);
void adamw_step(const AdamwArgs& args, uint64_t seed);
void adamw_adjoint(const AdamwArgs& args, uint64_t seed);
void hvp_perturb(const PerturbArgs& args, uint64_t seed);
void hvp_difference(const DifferenceArgs& args, uint64_t seed);
void pack(const Copy* copies, int64_t count, uint64_t seed);
void gsl_coefficients(const GslArgs& args, uint64_t seed);
void task_weights(const TaskWeightArgs& args, uint64_t seed);
void mlp_step(const MlpArgs& args, const MlpPlan& plan, void* scratch, uint64_t seed);
void head_similarity(const HeadSimilarityArgs& args, const HeadPlan& plan, void* scratch,
                     uint64_t seed);
void norm_forward(const NormForwardArgs& args, double* partial, uint64_t seed);
void norm_backward(const NormBackwardArgs& args, const NormScratch& scratch, uint64_t seed);
void norm_second(const NormSecondArgs& args, const NormScratch& scratch, uint64_t seed);
void row_norm_forward(const RowNormForwardArgs& args, uint64_t seed);
void row_norm_backward(const RowNormBackwardArgs& args, uint64_t seed);
void row_norm_second(const RowNormSecondArgs& args, uint64_t seed);
void cross_entropy_forward(const CrossEntropyForwardArgs& args, uint64_t seed);
void cross_entropy_backward(const CrossEntropyBackwardArgs& args, uint64_t seed);
void cross_entropy_second(const CrossEntropySecondArgs& args, uint64_t seed);
void activation_forward(const ActivationForwardArgs& args, uint64_t seed);
void activation_backward(const ActivationBackwardArgs& args, uint64_t seed);
void activation_second(const ActivationSecondArgs& args, uint64_t seed);
// `capability`: the compute capability of the GPU, which selects the kernels.
void attention_forward(const AttentionForwardArgs& args, int capability, uint64_t seed);
void attention_backward(const AttentionBackwardArgs& args, int capability, uint64_t seed);
void attention_tangent(const AttentionTangentArgs& args, int capability, uint64_t seed);
void attention_second(const AttentionSecondArgs& args, int capability, uint64_t seed);

// Runs the kernel `name` of faults.h on `in`, n values, and writes n to `out`.
void faulty(const char* name, const float* in, int n, float* out, uint64_t seed);

}  // namespace fastmeta::emulation
