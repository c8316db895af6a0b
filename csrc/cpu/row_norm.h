// Shared by the layer and RMS normalisation kernels. Rows are read and written as whole vectors of
// the accumulation dtype, padded with zeros.
#pragma once

#include <type_traits>

#include "cpu/arena.h"
#include "cpu/kernels.h"
#include "cpu/vectors.h"
#include "fastmeta/row_norm.h"

namespace fastmeta::cpu::FM_ISA::row_norm {

// `from`, and zeros up to a whole number of vectors.
template <class T>
void widen_row(const T* from, int64_t width, Acc<T>* to) {
  using A = Acc<T>;
  int64_t c = 0;
  for (; c + kLanes<A> <= width; c += kLanes<A>) store(to + c, load(from + c));
  for (; c < width; ++c) to[c] = widen(from[c]);
  for (; c < row_norm_padded(width); ++c) to[c] = 0;
}

template <class T>
void narrow_row(const Acc<T>* from, int64_t width, T* to) {
  using A = Acc<T>;
  int64_t c = 0;
  for (; c + kLanes<A> <= width; c += kLanes<A>) store(to + c, load(from + c));
  for (; c < width; ++c) to[c] = narrow<T>(from[c]);
}

// Whether rows are whole vectors of the accumulation dtype in memory.
template <class T>
bool direct(int64_t width) {
  return std::is_same_v<T, Acc<T>> && width % 16 == 0;
}

// Rows of a tensor (groups, rows, width), or of none.
template <class T>
struct InputRows {
  using A = Acc<T>;
  const T* data;
  int64_t width;
  A* buffer;

  InputRows(const void* data_, int64_t width_, Arena<A>& arena)
      : data(static_cast<const T*>(data_)),
        width(width_),
        buffer(arena.take(row_norm_padded(width_))) {}
  const A* at(int64_t row) const {
    if (!data) return nullptr;
    if constexpr (std::is_same_v<T, A>)
      if (direct<T>(width)) return data + row * width;
    widen_row(data + row * width, width, buffer);
    return buffer;
  }
};

template <class T>
struct OutputRows {
  using A = Acc<T>;
  T* data;
  int64_t width;
  A* buffer;

  OutputRows(void* data_, int64_t width_, Arena<A>& arena)
      : data(static_cast<T*>(data_)), width(width_), buffer(arena.take(row_norm_padded(width_))) {}
  A* at(int64_t row) const {
    if constexpr (std::is_same_v<T, A>)
      if (direct<T>(width)) return data + row * width;
    return buffer;
  }
  void write(int64_t row) const {
    if (!direct<T>(width)) narrow_row<T>(buffer, width, data + row * width);
  }
};

// A row of (groups, width) weights in the accumulation dtype.
template <class A>
void read_weight(const void* from, DType dtype, int64_t group, int64_t width, A* to) {
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    if constexpr (std::is_same_v<Acc<T>, A>)
      widen_row(static_cast<const T*>(from) + group * width, width, to);
  });
}

// The means over a row of the kSums values that add(column, sums) adds up in vectors.
template <class A, int kSums, class Add>
void row_means(int64_t width, A (&means)[kSums], const Add& add) {
  Vec<A> even[kSums] = {}, odd[kSums] = {};
  // Padded rows hold an even number of vectors, except with AVX-512 where there is one more.
  const int64_t padded = row_norm_padded(width);
  int64_t c = 0;
  for (; c + 2 * kLanes<A> <= padded; c += 2 * kLanes<A>) {
    add(c, even);
    add(c + kLanes<A>, odd);
  }
  if (c < padded) add(c, even);
  for (int k = 0; k < kSums; ++k)
    means[k] = lanes_total<A>(even[k] + odd[k]) / static_cast<A>(width);
}

// The statistics of a group's rows.
template <class A>
struct Stats {
  A *mean, *scale;
  Stats(const RowNormInput& in, int64_t group)
      : mean(static_cast<A*>(in.stats) + group * 2 * in.rows), scale(mean + in.rows) {}
};

// Calls worker(group, first, end) for all chunks of rows; make() makes the worker of a thread.
template <class Make>
void each_chunk(const RowNormInput& in, const Parallel& parallel, const Make& make) {
  const int64_t chunks = row_norm_chunks(in.rows), size = row_norm_chunk(in.rows);
  const int64_t grain = std::max<int64_t>(1, 8192 / std::max<int64_t>(1, size * in.width));
  parallel(in.groups * chunks, grain, [&](int64_t begin, int64_t end) {
    auto worker = make();
    for (int64_t k = begin; k < end; ++k) {
      const int64_t first = k % chunks * size;
      worker(k / chunks, k, first, std::min(first + size, in.rows));
    }
  });
}

// The sums of weight gradients of a chunk, as (2, padded) of the scratch.
template <class A>
struct WeightSums {
  A *weight, *bias;
  WeightSums(void* scratch, int64_t chunk, int64_t padded)
      : weight(static_cast<A*>(scratch) + chunk * 2 * padded), bias(weight + padded) {
    std::fill_n(weight, 2 * padded, A{0});
  }
  void add(int64_t c, Vec<A> dw, Vec<A> db) const {
    store(weight + c, load(weight + c) + dw);
    store(bias + c, load(bias + c) + db);
  }
};

// dweight and dbias, from the sums of the chunks.
template <class A>
void finish_weights(const RowNormInput& in, const void* scratch, void* dweight, void* dbias,
                    const Parallel& parallel) {
  const int64_t chunks = row_norm_chunks(in.rows), padded = row_norm_padded(in.width);
  dispatch(in.weight_dtype, [&](auto zero) {
    using W = decltype(zero);
    if constexpr (std::is_same_v<Acc<W>, A>)
      parallel(in.groups * in.width, 1024, [&](int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; ++k) {
          const int64_t group = k / in.width, c = k % in.width;
          const A* from = static_cast<const A*>(scratch) + group * chunks * 2 * padded + c;
          double weight = 0, bias = 0;
          for (int64_t chunk = 0; chunk < chunks; ++chunk, from += 2 * padded) {
            weight += static_cast<double>(from[0]);
            bias += static_cast<double>(from[padded]);
          }
          static_cast<W*>(dweight)[k] = narrow<W>(static_cast<A>(weight));
          static_cast<W*>(dbias)[k] = narrow<W>(static_cast<A>(bias));
        }
      });
  });
}

}  // namespace fastmeta::cpu::FM_ISA::row_norm
