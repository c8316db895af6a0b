// Tensor core instructions: products and transposes of matrices, and faults. `in` holds bfloat16
// values; one warp of the first block takes part.
#pragma once

#include "emulation/faults/common.h"
#include "emulation/mma.h"

namespace fastmeta::emulation::faults {

__device__ inline uint32_t bits_of(float x) {
  return narrow<BFloat16>(x).bits;
}

// out (16, 8) = a (16, 16) times b (16, 8), the fragments read and written as the PTX ISA says.
__global__ void matrix_product(const float* in, int, float* out) {
  if (blockIdx.x > 0 || threadIdx.x >= 32) return;
  const int row = threadIdx.x / 4, col = threadIdx.x % 4 * 2;
  const auto pair = [](float low, float high) { return bits_of(low) | bits_of(high) << 16; };
  const auto a = [&](int i, int k) { return pair(in[i * 16 + k], in[i * 16 + k + 1]); };
  const auto b = [&](int k) { return pair(in[256 + k * 8 + row], in[256 + (k + 1) * 8 + row]); };
  const uint32_t left[] = {a(row, col), a(row + 8, col), a(row, col + 8), a(row + 8, col + 8)};
  float c[4] = {};
  cuda::mma_m16n8k16<BFloat16>(c, left, b(col), b(col + 8));
  for (int e = 0; e < 4; ++e) out[(row + e / 2 * 8) * 8 + col + e % 2] = c[e];
}

// Four 8 x 8 matrices below each other, in shared memory.
struct Matrices {
  alignas(16) uint16_t rows[32][8];
};
__device__ inline void set_row(Matrices& shared, const float* in, int n) {
  for (int k = 0; k < 8; ++k)
    shared.rows[threadIdx.x][k] = static_cast<uint16_t>(bits_of(in[(threadIdx.x * 8 + k) % n]));
}
template <bool kTransposed>
__device__ void write_matrices(const void* row, float* out) {
  uint32_t x[4];
  cuda::ldmatrix_x4<kTransposed>(x, row);
  const int at = threadIdx.x / 4 * 8 + threadIdx.x % 4 * 2;
  for (int m = 0; m < 4; ++m)
    for (int k = 0; k < 2; ++k)
      out[m * 64 + at + k] = widen(BFloat16{static_cast<uint16_t>(x[m] >> 16 * k)});
}

// out (4, 8, 8) = in, and each of its matrices transposed.
__global__ void matrix_rows(const float* in, int n, float* out) {
  __shared__ Matrices shared;
  if (threadIdx.x < 32) set_row(shared, in, n);
  __syncthreads();
  if (blockIdx.x > 0 || threadIdx.x >= 32) return;
  write_matrices<false>(shared.rows[threadIdx.x], out);
  write_matrices<true>(shared.rows[threadIdx.x], out + 256);
}

__global__ void matrix_rows_without_barrier(const float* in, int n, float* out) {
  __shared__ Matrices shared;
  if (threadIdx.x >= 32) return;
  set_row(shared, in, n);
  write_matrices<false>(shared.rows[threadIdx.x], out);
}

__global__ void misaligned_matrix_row(const float* in, int n, float* out) {
  __shared__ Matrices shared;
  if (threadIdx.x < 32) set_row(shared, in, n);
  __syncthreads();
  if (threadIdx.x < 32) write_matrices<false>(shared.rows[0] + 1, out);
}

__global__ void product_of_half_a_warp(const float* in, int, float* out) {
  if (threadIdx.x % 32 >= 16) return;
  float c[4] = {};
  const uint32_t a[4] = {bits_of(in[0])};
  cuda::mma_m16n8k16<BFloat16>(c, a, a[0], a[1]);
  out[threadIdx.x] = c[0];
}

// out = in, reversed within each block, by asynchronous copies.
struct alignas(16) CopiedTile {
  float values[kSide];
};
template <bool kWait>
__device__ void reverse_copies(const float* in, float* out) {
  __shared__ CopiedTile shared;
  float* tile = shared.values;
  const unsigned first = blockIdx.x * kSide, at = threadIdx.x * 4;
  if (at < kSide) cuda::copy_async(tile + at, in + first + at, true);
  if (kWait) cuda::wait_for_copies();
  __syncthreads();
  out[first + threadIdx.x] = tile[kSide - 1 - threadIdx.x];
}
__global__ void reverse_by_copies(const float* in, int, float* out) {
  reverse_copies<true>(in, out);
}
__global__ void copies_without_wait(const float* in, int, float* out) {
  reverse_copies<false>(in, out);
}

}  // namespace fastmeta::emulation::faults
