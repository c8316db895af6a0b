// Selects the kernel table for the present processor.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu/kernels.h"

namespace fastmeta::cpu {

namespace baseline {
const Kernels* table();
}
#if defined(FM_HAVE_X86)
namespace avx2 {
const Kernels* table();
}
namespace avx512 {
const Kernels* table();
}
#endif

const Kernels* kernels_for(const char* isa) {
  const std::string name = isa;
  if (name == "baseline") return baseline::table();
#if defined(FM_HAVE_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  if (name == "avx2" && avx2) return avx2::table();
  if (name == "avx512" && avx2 && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq"))
    return avx512::table();
#endif
  return nullptr;
}

const Kernels& kernels() {
  static const Kernels* chosen = [] {
    if (const char* wanted = std::getenv("FASTMETA_CPU_ISA")) {
      if (const Kernels* table = kernels_for(wanted)) return table;
      throw std::runtime_error(std::string("FASTMETA_CPU_ISA must name an instruction set of this "
                                           "processor (baseline, avx2 or avx512), got '") +
                               wanted + "'. Unset it to take the best one.");
    }
    for (const char* isa : {"avx512", "avx2"})
      if (const Kernels* table = kernels_for(isa)) return table;
    return kernels_for("baseline");
  }();
  return *chosen;
}

}  // namespace fastmeta::cpu
