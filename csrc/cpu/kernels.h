// The vectorised CPU kernels, compiled once per instruction set and selected at run time.
#pragma once

#include "fastmeta/activation.h"
#include "fastmeta/adamw.h"
#include "fastmeta/attention.h"
#include "fastmeta/combine.h"
#include "fastmeta/conv.h"
#include "fastmeta/cross_entropy.h"
#include "fastmeta/gram.h"
#include "fastmeta/head_similarity.h"
#include "fastmeta/mlp.h"
#include "fastmeta/norm.h"
#include "fastmeta/row_norm.h"
#include "fastmeta/sequence.h"
#include "fastmeta/similarity.h"
#include "fastmeta/step.h"

namespace fastmeta::cpu {

struct Kernels {
  const char* isa;
#define FM_KERNEL(name, Args) void (*name)(const Args&, const Parallel&);
#include "cpu/kernels.inc"
#undef FM_KERNEL
};

// The table of one instruction set ("baseline", "avx2", "avx512"); null if the processor or the
// build does not support it.
const Kernels* kernels_for(const char* isa);

// The best table for this processor, or the one that FASTMETA_CPU_ISA names; selected once.
const Kernels& kernels();

}  // namespace fastmeta::cpu
