#include "cpu/items.h"
#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace fastmeta::cpu::FM_ISA {
namespace {

constexpr int64_t kGrain = 16384;  // minimum elements per thread

template <class T>
void step(const StepItem& item, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const T* theta = static_cast<const T*>(item.theta);
  const T* grad = static_cast<const T*>(item.grad);
  const A* alpha = static_cast<const A*>(item.alpha);
  T* out = static_cast<T*>(item.out);
  if (item.frozen) {
    memcpy(out + begin, theta + begin, sizeof(T) * (end - begin));
    return;
  }
  int64_t p = begin;
  for (; p + kLanes<A> <= end; p += kLanes<A>) {
    const Vec<A> rate = item.alpha_full ? load(alpha + p) : splat<A>(*alpha);
    store(out + p, load(theta + p) - rate * load(grad + p));
  }
  for (; p < end; ++p)
    out[p] =
        narrow<T>(step_core<A>(widen(theta[p]), alpha[item.alpha_full ? p : 0], widen(grad[p])));
}

}  // namespace

void inner_step(const StepArgs& args, const Parallel& parallel) {
  dispatch(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    each_item(args.items, args.count, kGrain, parallel, step<T>);
  });
}

namespace {

// Calls body(row, first column, last column) for the rows that elements [begin, end) touch.
template <class Body>
void for_rows(int64_t begin, int64_t end, int64_t cols, const Body& body) {
  while (begin < end) {
    const int64_t row = begin / cols;
    const int64_t stop = (row + 1) * cols < end ? (row + 1) * cols : end;
    body(row, begin - row * cols, stop - row * cols);
    begin = stop;
  }
}

}  // namespace

void hvp_perturb(const PerturbArgs& args, const Parallel& parallel) {
  dispatch(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    using A = Acc<T>;
    parallel(args.rows * args.cols, kGrain, [&](int64_t begin, int64_t end) {
      for_rows(begin, end, args.cols, [&](int64_t row, int64_t from, int64_t to) {
        const T* theta = static_cast<const T*>(args.theta) + row * args.cols;
        const T* v = static_cast<const T*>(args.v) + row * args.cols;
        T* plus = static_cast<T*>(args.plus) + row * args.cols;
        T* minus = static_cast<T*>(args.minus) + row * args.cols;
        const A eps = static_cast<const A*>(args.eps)[row];
        for (int64_t p = from; p < to; ++p) {
          const A centre = widen(theta[p]), delta = eps * widen(v[p]);
          plus[p] = narrow<T>(centre + delta);
          minus[p] = narrow<T>(centre - delta);
        }
      });
    });
  });
}

void hvp_difference(const DifferenceArgs& args, const Parallel& parallel) {
  dispatch(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    using A = Acc<T>;
    const A* alpha = static_cast<const A*>(args.alpha);
    parallel(args.rows * args.cols, kGrain, [&](int64_t begin, int64_t end) {
      for_rows(begin, end, args.cols, [&](int64_t row, int64_t from, int64_t to) {
        const T* v = static_cast<const T*>(args.v) + row * args.cols;
        const T* plus = static_cast<const T*>(args.g_plus) + row * args.cols;
        const T* minus = static_cast<const T*>(args.g_minus) + row * args.cols;
        T* out = static_cast<T*>(args.out) + row * args.cols;
        const A eps = static_cast<const A*>(args.eps)[row];
        for (int64_t p = from; p < to; ++p)
          out[p] = narrow<T>(difference_core<A>(widen(v[p]), alpha[args.alpha_full ? p : 0],
                                                widen(plus[p]), widen(minus[p]), eps));
      });
    });
  });
}

}  // namespace fastmeta::cpu::FM_ISA
