#include "emulation/mma.h"

namespace fastmeta::emulation {

const void* const* matrix_rows(CallSite call_site, const void* own) {
  if (!Shadow::holds(own)) block().fail("has ldmatrix read an address outside of shared memory");
  if (reinterpret_cast<uintptr_t>(own) % 16) block().fail("has ldmatrix read a misaligned row");
  return block().gather(call_site, own);
}

void multiply(CallSite call_site, const Operands& own, float (&c)[4]) {
  const Operands* all = block().gather(call_site, own);
  const int lane = block().lane();
  for (int e = 0; e < 4; ++e) {
    const int row = lane / 4 + e / 2 * 8, col = lane % 4 * 2 + e % 2;
    for (int k = 0; k < 16; ++k) {
      const int column = k % 8 / 2;  // of the lane's two columns of 8
      const float a = all[row % 8 * 4 + column].a[k / 8 * 4 + row / 8 * 2 + k % 2];
      const float b = all[col * 4 + column].b[k / 8 * 2 + k % 2];
      c[e] += a * b;
    }
  }
}

}  // namespace fastmeta::emulation
