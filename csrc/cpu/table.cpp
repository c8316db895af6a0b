// The kernel table of one instruction set.
#include "cpu/kernels.h"

#define FM_STRING(x) #x
#define FM_NAME(x) FM_STRING(x)

namespace fastmeta::cpu::FM_ISA {

#define FM_KERNEL(name, Args) void name(const Args&, const Parallel&);
#include "cpu/kernels.inc"
#undef FM_KERNEL

const Kernels* table() {
  static const Kernels kernels = {
      FM_NAME(FM_ISA),
#define FM_KERNEL(name, Args) name,
#include "cpu/kernels.inc"
#undef FM_KERNEL
  };
  return &kernels;
}

}  // namespace fastmeta::cpu::FM_ISA
