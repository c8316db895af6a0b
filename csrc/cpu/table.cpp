// The kernel table of one instruction set.
#include "cpu/kernels.h"

#define FM_STRING(x) #x
#define FM_NAME(x) FM_STRING(x)

namespace fastmeta::cpu::FM_ISA {

void gram(const GramArgs&, const Parallel&);
void row_similarity(const RowSimilarityArgs&, const Parallel&);
void mean_similarity(const MeanSimilarityArgs&, const Parallel&);
void combine(const CombineArgs&, const Parallel&);
void inner_step(const StepArgs&, const Parallel&);
void hvp_perturb(const PerturbArgs&, const Parallel&);
void hvp_difference(const DifferenceArgs&, const Parallel&);
void mlp_step(const MlpArgs&, const Parallel&);
void conv_forward(const ConvForwardArgs&, const Parallel&);
void conv_input(const ConvInputArgs&, const Parallel&);
void conv_weight(const ConvWeightArgs&, const Parallel&);
void norm_forward(const NormForwardArgs&, const Parallel&);
void norm_backward(const NormBackwardArgs&, const Parallel&);
void norm_second(const NormSecondArgs&, const Parallel&);

const Kernels* table() {
  static const Kernels kernels = {FM_NAME(FM_ISA), gram,          row_similarity, mean_similarity,
                                  combine,         inner_step,    hvp_perturb,    hvp_difference,
                                  mlp_step,        conv_forward,  conv_input,     conv_weight,
                                  norm_forward,    norm_backward, norm_second};
  return &kernels;
}

}  // namespace fastmeta::cpu::FM_ISA
