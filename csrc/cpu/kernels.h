// The vectorised CPU kernels, compiled once per instruction set and chosen at run time.
#pragma once

#include "fastmeta/combine.h"
#include "fastmeta/conv.h"
#include "fastmeta/gram.h"
#include "fastmeta/mlp.h"
#include "fastmeta/norm.h"
#include "fastmeta/similarity.h"
#include "fastmeta/step.h"

namespace fastmeta::cpu {

struct Kernels {
  const char* isa;
  void (*gram)(const GramArgs&, const Parallel&);
  void (*row_similarity)(const RowSimilarityArgs&, const Parallel&);
  void (*mean_similarity)(const MeanSimilarityArgs&, const Parallel&);
  void (*combine)(const CombineArgs&, const Parallel&);
  void (*inner_step)(const StepArgs&, const Parallel&);
  void (*hvp_perturb)(const PerturbArgs&, const Parallel&);
  void (*hvp_difference)(const DifferenceArgs&, const Parallel&);
  void (*mlp_step)(const MlpArgs&, const Parallel&);
  void (*conv_forward)(const ConvForwardArgs&, const Parallel&);
  void (*conv_input)(const ConvInputArgs&, const Parallel&);
  void (*conv_weight)(const ConvWeightArgs&, const Parallel&);
  void (*norm_forward)(const NormForwardArgs&, const Parallel&);
  void (*norm_backward)(const NormBackwardArgs&, const Parallel&);
  void (*norm_second)(const NormSecondArgs&, const Parallel&);
};

// The table of one instruction set ("baseline", "avx2", "avx512"); null where the processor or the
// build lacks it.
const Kernels* kernels_for(const char* isa);

// The best table of this processor, or the one FASTMETA_CPU_ISA names; chosen once.
const Kernels& kernels();

}  // namespace fastmeta::cpu
