// Matrix products of a warp on tensor cores, for sm_80 and later: 16 x 16 blocks of float16 or
// bfloat16, accumulated in float32. All lanes of the warp must call these functions together.
//
// The two instructions below them have the fragment layouts of the PTX ISA; emulation/mma.h has its
// own, so that the kernels run without a GPU.
#pragma once

#include <type_traits>

#include "cuda/common.cuh"

namespace fastmeta::cuda {

constexpr int kMmaCapability = 80;

// Whether the code that is being compiled may use these instructions; true on the host, too.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr bool kTensorCores = false;
#else
constexpr bool kTensorCores = true;
#endif

#if defined(__CUDACC__)
// Four 8 x 8 matrices of 16-bit values in shared memory, or their transposes: lane l holds the
// address of row l % 8 of matrix l / 8, and receives two adjacent values of row l / 4 of each.
template <bool kTransposed>
__device__ inline void ldmatrix_x4(uint32_t (&x)[4], const void* row) {
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(at));
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(at));
}

// c += a b for a (16, 16), b (16, 8) and c (16, 8).
template <class T>
__device__ inline void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1) {
  if constexpr (std::is_same_v<T, Half>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif

constexpr int kMmaSide = 16;

// A 16 x 16 block of T as the left or right factor of a product: the words of lane l hold columns
// 2 (l % 4) and the next one of the block's quarters, row l / 4. The quarters of a left factor are
// in column-major order, those of a right one in row-major order.
template <class T>
struct LeftBlock {
  uint32_t x[4];
};
template <class T>
struct RightBlock {
  uint32_t x[4];
};

// A 16 x 16 block of float32: element e of half n is row l / 4 + 8 (e / 2), column
// 8 n + 2 (l % 4) + e % 2.
struct Accumulator {
  float c[2][4] = {};
};
__device__ inline int accumulator_row(int e) {
  return threadIdx.x % kWarp / 4 + e / 2 * 8;
}
__device__ inline int accumulator_column(int n, int e) {
  return n * 8 + threadIdx.x % 4 * 2 + e % 2;
}

// Blocks at `corner` of a matrix in shared memory whose rows are aligned to 16 bytes.
template <class T>
__device__ inline LeftBlock<T> load_left(const T* corner, int stride) {
  const int lane = threadIdx.x % kWarp;
  LeftBlock<T> block;
  ldmatrix_x4<false>(block.x, corner + lane % 16 * stride + lane / 16 * 8);
  return block;
}
template <class T>
__device__ inline RightBlock<T> load_right(const T* corner, int stride) {
  const int lane = threadIdx.x % kWarp;
  RightBlock<T> block;
  ldmatrix_x4<false>(block.x, corner + (lane % 8 + lane / 16 * 8) * stride + lane / 8 % 2 * 8);
  return block;
}
template <class T>
__device__ inline RightBlock<T> load_right_transposed(const T* corner, int stride) {
  const int lane = threadIdx.x % kWarp;
  RightBlock<T> block;
  ldmatrix_x4<true>(block.x, corner + lane % 16 * stride + lane / 16 * 8);
  return block;
}

// sum += a b'
template <class T>
__device__ inline void add_product(Accumulator& sum, const LeftBlock<T>& a,
                                   const RightBlock<T>& b) {
  for (int n = 0; n < 2; ++n) mma_m16n8k16<T>(sum.c[n], a.x, b.x[2 * n], b.x[2 * n + 1]);
}

template <class T>
__device__ inline uint32_t pack_pair(float low, float high) {
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<T, BFloat16>) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&both);
  }
#endif
  return narrow<T>(low).bits | static_cast<uint32_t>(narrow<T>(high).bits) << 16;
}

// Rounded to T.
template <class T>
__device__ inline LeftBlock<T> rounded(const Accumulator& sum) {
  return {{pack_pair<T>(sum.c[0][0], sum.c[0][1]), pack_pair<T>(sum.c[0][2], sum.c[0][3]),
           pack_pair<T>(sum.c[1][0], sum.c[1][1]), pack_pair<T>(sum.c[1][2], sum.c[1][3])}};
}

// Adds the lane's values of rows l / 4 and l / 4 + 8 to sums[0] and sums[1].
template <class T>
__device__ inline void add_row_sums(const LeftBlock<T>& block, float (&sums)[2]) {
  for (int k = 0; k < 4; ++k)
    sums[k % 2] += widen(T{static_cast<uint16_t>(block.x[k])}) +
                   widen(T{static_cast<uint16_t>(block.x[k] >> 16)});
}

}  // namespace fastmeta::cuda
