// Small matrix products by a block of threads; each sum is added up in order by one thread.
#pragma once

#include "cuda/common.cuh"

namespace fastmeta::cuda {

// A (rows, depth) times B (depth, columns), both with arbitrary strides.
template <class T>
struct Factors {
  const T* a;
  int a_row;
  int a_col;
  const T* b;
  int b_row;
  int b_col;
  int depth;
};

template <int kSide, class T>
__device__ void add_product(const Factors<T>& f, const int (&row)[kSide], const int (&col)[kSide],
                            T (&sum)[kSide][kSide]) {
  const T *a[kSide], *b[kSide];
  for (int s = 0; s < kSide; ++s) {
    a[s] = f.a + row[s] * f.a_row;
    b[s] = f.b + col[s] * f.b_col;
  }
  for (int k = 0; k < f.depth; ++k) {
    T left[kSide], right[kSide];
    for (int s = 0; s < kSide; ++s) {
      left[s] = a[s][k * f.a_col];
      right[s] = b[s][k * f.b_row];
    }
    for (int r = 0; r < kSide; ++r)
      for (int c = 0; c < kSide; ++c) sum[r][c] += left[r] * right[c];
  }
}

// Each thread holds kSide x kSide sums whose rows and columns are spread over the result, so that a
// warp covers neighbouring columns.
template <int kSide, class T, int kCount, class Put>
__device__ void multiply_squares(int rows, int cols, const Factors<T> (&factors)[kCount],
                                 const Put& put) {
  const int down = (rows + kSide - 1) / kSide, across = (cols + kSide - 1) / kSide;
  for (int t = threadIdx.x; t < down * across; t += kThreads) {
    int row[kSide], col[kSide];
    for (int s = 0; s < kSide; ++s) {  // past the edge: the last row or column, not written
      const int r = t / across + s * down, c = t % across + s * across;
      row[s] = r < rows ? r : rows - 1;
      col[s] = c < cols ? c : cols - 1;
    }
    T sum[kSide][kSide] = {};
    for (int f = 0; f < kCount; ++f) add_product(factors[f], row, col, sum);
    for (int r = 0; r < kSide; ++r)
      for (int c = 0; c < kSide; ++c)
        if (t / across + r * down < rows && t % across + c * across < cols)
          put(row[r], col[c], sum[r][c]);
  }
}

// Calls put(row, column, sum of the products) for each element, computed by one thread in order.
template <class T, int kCount, class Put>
__device__ void multiply(int rows, int cols, const Factors<T> (&factors)[kCount], const Put& put) {
  if (rows * cols < 4 * kThreads)
    multiply_squares<1>(rows, cols, factors, put);
  else
    multiply_squares<2>(rows, cols, factors, put);
}

}  // namespace fastmeta::cuda
