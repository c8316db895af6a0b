// Weighted sums of rows in a single pass over memory.
#pragma once

#include "cpu/simd.h"

namespace fastmeta::cpu::FM_ISA {

// Rows read concurrently: as many streams as hardware prefetchers follow (measured in
// benchmarks/NOTES.md).
constexpr int64_t kStreams = 16;

// acc += c[0] row_0 + c[step] row_1 + ... over kVectors vectors of columns held in registers.
template <int64_t kVectors, class T>
inline void add_tile(const T* g, int64_t rows, int64_t stride, const Acc<T>* c, int64_t step,
                     Acc<T>* acc) {
  using A = Acc<T>;
  Vec<A> sums[kVectors];
  for (int64_t k = 0; k < kVectors; ++k) sums[k] = load(acc + k * kLanes<A>);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t k = 0; k < kVectors; ++k)
      sums[k] += c[i * step] * load(g + i * stride + k * kLanes<A>);
  for (int64_t k = 0; k < kVectors; ++k) store(acc + k * kLanes<A>, sums[k]);
}

// acc[p] += c[0] row_0[p] + c[step] row_1[p] + ... for n columns, by one multiply-add per element
// in row order: with unit weights the result is bitwise that of plain addition.
template <class T>
void add_rows(const T* g, int64_t rows, int64_t stride, const Acc<T>* c, int64_t step, int64_t n,
              Acc<T>* acc) {
  constexpr int64_t kOne = kLanes<Acc<T>>, kFour = 4 * kOne;
  for (int64_t i = 0; i < rows; i += kStreams) {
    const int64_t group = rows - i < kStreams ? rows - i : kStreams;
    const T* first = g + i * stride;
    const Acc<T>* weights = c + i * step;
    int64_t p = 0;
    for (; p + kFour <= n; p += kFour)
      add_tile<4>(first + p, group, stride, weights, step, acc + p);
    for (; p + kOne <= n; p += kOne) add_tile<1>(first + p, group, stride, weights, step, acc + p);
    for (; p < n; ++p)
      for (int64_t r = 0; r < group; ++r)
        acc[p] += weights[r * step] * widen(first[r * stride + p]);
  }
}

}  // namespace fastmeta::cpu::FM_ISA
