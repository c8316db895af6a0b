#include <algorithm>

#include "cpu/kernels.h"
#include "cpu/rows.h"
#include "cpu/sums.h"

namespace fastmeta::cpu::FM_ISA {
namespace {

template <class A>
struct MeanSums {
  Sums<A, 2> dot;  // <g, s>
  Sums<A, 2> own;  // |g|^2
};

// Adds n elements of one row to its sums.
template <class T>
void mean_sums(const T* g, const Acc<T>* s, int64_t n, MeanSums<Acc<T>>& row) {
  using A = Acc<T>;
  constexpr int64_t kStep = 2 * kLanes<A>;
  const int64_t whole = n / kStep * kStep;
  MeanSums<A> sums = row;  // in registers
  for (int64_t p = 0; p < whole; p += kStep)
    for (int64_t k = 0; k < 2; ++k) {
      const Vec<A> x = load(g + p + k * kLanes<A>);
      sums.dot.lanes[k] += x * load(s + p + k * kLanes<A>);
      sums.own.lanes[k] += x * x;
    }
  for (int64_t p = whole; p < n; ++p) {
    const double x = widen(g[p]);
    sums.dot.tail += x * static_cast<double>(s[p]);
    sums.own.tail += x * x;
  }
  row = sums;
}

}  // namespace

void row_similarity(const RowSimilarityArgs& args, const Parallel& parallel) {
  const int64_t tasks = args.a.rows;
  const std::vector<Chunk> chunks = make_chunks(args.segments, args.a.cols);
  const int64_t count = static_cast<int64_t>(chunks.size());
  dispatch(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* a = static_cast<const T*>(args.a.data);
    const T* b = static_cast<const T*>(args.b.data);
    parallel(count * tasks, 8, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        const int64_t i = k / count;
        const Chunk c = chunks[k % count];
        row_sums(a + i * args.a.stride + c.begin, b + i * args.b.stride + c.begin, c.end - c.begin,
                 args.partial + 3 * k);
      }
    });
    std::vector<double> total(args.segments.count * 3);
    for (int64_t i = 0; i < tasks; ++i) {
      std::fill(total.begin(), total.end(), 0.0);
      for (int64_t c = 0; c < count; ++c)
        for (int64_t m = 0; m < 3; ++m)
          total[3 * chunks[c].segment + m] += args.partial[3 * (i * count + c) + m];
      for (size_t m = 0; m < total.size(); ++m)
        static_cast<Acc<T>*>(args.out)[i * total.size() + m] = static_cast<Acc<T>>(total[m]);
    }
  });
}

void mean_similarity(const MeanSimilarityArgs& args, const Parallel& parallel) {
  constexpr int64_t kBlock = 1024;  // columns whose sum fits the L1 cache
  const int64_t tasks = args.g.rows;
  const int64_t bounds[2] = {0, args.g.cols};
  const std::vector<Chunk> chunks = make_chunks({bounds, 1}, args.g.cols);
  dispatch(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* g = static_cast<const T*>(args.g.data);
    parallel(static_cast<int64_t>(chunks.size()), 1, [&](int64_t begin, int64_t end) {
      const Acc<T> one = 1;
      Acc<T> s[kBlock];
      std::vector<MeanSums<Acc<T>>> rows(tasks);
      for (int64_t c = begin; c < end; ++c) {
        std::fill(rows.begin(), rows.end(), MeanSums<Acc<T>>{});
        for (int64_t p = chunks[c].begin; p < chunks[c].end; p += kBlock) {
          const int64_t n = chunks[c].end - p < kBlock ? chunks[c].end - p : kBlock;
          memset(s, 0, sizeof(Acc<T>) * n);
          add_rows(g + p, tasks, args.g.stride, &one, 0, n, s);
          for (int64_t i = 0; i < tasks; ++i) mean_sums(g + i * args.g.stride + p, s, n, rows[i]);
        }
        for (int64_t i = 0; i < tasks; ++i) {
          args.partial[2 * (tasks * c + i)] = rows[i].dot.total();
          args.partial[2 * (tasks * c + i) + 1] = rows[i].own.total();
        }
      }
    });
    for (int64_t m = 0; m < 2 * tasks; ++m) {
      double total = 0;
      for (size_t c = 0; c < chunks.size(); ++c) total += args.partial[2 * tasks * c + m];
      static_cast<Acc<T>*>(args.out)[m] = static_cast<Acc<T>>(total);
    }
  });
}

}  // namespace fastmeta::cpu::FM_ISA
