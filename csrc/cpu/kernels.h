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
#define FM_KERNEL(name, Args) void (*name)(const Args&, const Parallel&);
#include "cpu/kernels.inc"
#undef FM_KERNEL
};

// The table of one instruction set ("baseline", "avx2", "avx512"); null where the processor or the
// build lacks it.
const Kernels* kernels_for(const char* isa);

// The best table of this processor, or the one FASTMETA_CPU_ISA names; chosen once.
const Kernels& kernels();

}  // namespace fastmeta::cpu
