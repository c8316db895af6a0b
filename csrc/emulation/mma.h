// The tensor core instructions of cuda/mma.cuh on a CPU, with the fragment layouts of the PTX ISA.
// Products are exact and added in float32, one after another; a GPU may add in another order.
#pragma once

#include "emulation/block.h"
#include "fastmeta/platform.h"

namespace fastmeta::emulation {

// The addresses that the lanes have given to ldmatrix; each must be of 16 bytes of shared memory.
const void* const* matrix_rows(CallSite call_site, const void* own);

// A lane's elements of a and b, in the order of their registers.
struct Operands {
  float a[8], b[4];
};
// c += a b, of the warp.
void multiply(CallSite call_site, const Operands& own, float (&c)[4]);

}  // namespace fastmeta::emulation

namespace fastmeta::cuda {

template <bool kTransposed>
void ldmatrix_x4(uint32_t (&x)[4], const void* row, const char* file = __builtin_FILE(),
                 int line = __builtin_LINE()) {
  const void* const* rows = emulation::matrix_rows({"ldmatrix", file, line}, row);
  const int lane = emulation::block().lane(), near = lane / 4, far = lane % 4 * 2;
  for (int m = 0; m < 4; ++m) {
    uint32_t pair[2];
    for (int k = 0; k < 2; ++k) {
      const int at = kTransposed ? far + k : near, col = kTransposed ? near : far + k;
      pair[k] = static_cast<const uint16_t*>(rows[m * 8 + at])[col];
    }
    x[m] = pair[0] | pair[1] << 16;
  }
}

template <class T>
void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                  const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  const auto element = [](uint32_t word, int k) {
    return widen(T{static_cast<uint16_t>(word >> 16 * k)});
  };
  emulation::Operands own;
  for (int k = 0; k < 8; ++k) own.a[k] = element(a[k / 2], k % 2);
  for (int k = 0; k < 4; ++k) own.b[k] = element(k < 2 ? b0 : b1, k % 2);
  emulation::multiply({"mma", file, line}, own, c);
}

}  // namespace fastmeta::cuda
