#include <algorithm>
#include <type_traits>

#include "cpu/arena.h"
#include "cpu/kernels.h"
#include "cpu/matrix.h"
#include "cpu/mlp_math.h"
#include "cpu/sums.h"

namespace fastmeta::cpu::FM_ISA {
namespace {

constexpr int64_t kGrain = int64_t{1} << 16;  // multiplications worth a thread

template <class T>
void widen_rows(const T* from, int64_t rows, int64_t columns, Acc<T>* to, int64_t to_row) {
  using A = Acc<T>;
  for (int64_t i = 0; i < rows; ++i, from += columns, to += to_row) {
    int64_t j = 0;
    for (; j + kLanes<A> <= columns; j += kLanes<A>) store(to + j, load(from + j));
    for (; j < columns; ++j) to[j] = widen(from[j]);
    for (; j < to_row; ++j) to[j] = 0;
  }
}

template <class T>
void narrow_rows(const Acc<T>* from, int64_t from_row, int64_t rows, int64_t columns, T* to) {
  using A = Acc<T>;
  for (int64_t i = 0; i < rows; ++i, from += from_row, to += columns) {
    int64_t j = 0;
    for (; j + kLanes<A> <= columns; j += kLanes<A>) store(to + j, load(from + j));
    for (; j < columns; ++j) to[j] = narrow<T>(from[j]);
  }
}

// Inner products of rows of A and B, kDown x kAcross at a time: one lane of a vector each.
template <class A>
constexpr int kDown = kLanes<A> == 16  ? 4
                      : kLanes<A> == 2 ? 1
                                       : 2;
template <class A>
constexpr int kAcross = static_cast<int>(kLanes<A>) / kDown<A>;

// Calls put(i, j, <row i of a, row j of b>) for all rows, of a whole number of vectors.
template <class A, class Put>
void multiply_rows(const A* a, int64_t rows, const A* b, int64_t columns, int64_t width,
                   const Put& put) {
  constexpr int kR = kDown<A>, kC = kAcross<A>;
  for (int64_t i = 0; i < rows; i += kR)
    for (int64_t j = 0; j < columns; j += kC) {
      const A *left[kR], *right[kC];  // past the end: the last row, not written
      for (int r = 0; r < kR; ++r) left[r] = a + std::min(i + r, rows - 1) * width;
      for (int c = 0; c < kC; ++c) right[c] = b + std::min(j + c, columns - 1) * width;
      Vec<A> sum[kLanes<A>] = {};
      for (int64_t k = 0; k < width; k += kLanes<A>) {
        Vec<A> x[kR];
        unrolled<kR>([&](auto r) FM_INLINE { x[r] = load(left[r] + k); });
        unrolled<kC>([&](auto c) FM_INLINE {
          const Vec<A> y = load(right[c] + k);
          unrolled<kR>([&](auto r) FM_INLINE { sum[r * kC + c] += x[r] * y; });
        });
      }
      transpose_square<A>(sum);
      Vec<A> total = sum[0];
      for (int64_t k = 1; k < kLanes<A>; ++k) total += sum[k];
      for (int r = 0; r < kR && i + r < rows; ++r)
        for (int c = 0; c < kC && j + c < columns; ++c) put(i + r, j + c, total[r * kC + c]);
    }
}

// One task after the other, in its own memory. What belongs to an example and a class is stored by
// class: vectors are over the examples, padded to a whole number.
template <class T>
class Worker {
  using A = Acc<T>;

 public:
  explicit Worker(const HeadSimilarityArgs& args)
      : args_(args),
        row_(padded<A>(args.n)),
        wide_(padded<A>(args.width)),
        in_place_(std::is_same_v<T, A> && wide_ == args.width),
        arena_((3 * args.classes + 1) * row_ + (in_place_ ? 1 : 4) * args.classes * wide_ +
               (in_place_ ? 0 : args.n + std::max(args.n, args.classes)) * wide_ +
               2 * padded<A>(args.classes) +
               (std::is_same_v<T, A> ? 0 : padded<A>(args.n * args.classes))) {
    const int64_t head = args.classes * wide_;
    p_ = arena_.take(args.classes * row_);
    delta_ = arena_.take(args.classes * row_);
    s_ = arena_.take_zeros(args.classes * row_);  // so is its padding, from then on
    scale_ = arena_.take_zeros(row_);
    direction_ = arena_.take(head);
    g_bias_ = arena_.take(padded<A>(args.classes));
    shift_ = arena_.take(padded<A>(args.classes));
    if (!std::is_same_v<T, A>) narrow_ = arena_.take(padded<A>(args.n * args.classes));
    if (in_place_) return;
    x_ = arena_.take(args.n * wide_);
    weight_ = arena_.take(head);
    v_ = arena_.take(head);
    g_ = arena_.take(head);
    out_ = arena_.take(std::max(args.n, args.classes) * wide_);
  }

  void run(int64_t task) {
    const int64_t n = args_.n, classes = args_.classes, head = classes * wide_;
    const A* x = read(args_.features, task, n, x_);
    const A* weight = read(args_.weight, task, classes, weight_);
    const A* v = read(args_.query_weight, task, classes, v_);
    evaluate(task);
    A* g = in_place_ ? target(args_.grad_weight, task, classes) : g_;
    multiply(g, wide_, classes, wide_, zeros<A>(), {Factors<A>{delta_, row_, 1, x, wide_, n}});
    if (!in_place_) {
      for (int64_t j = 0; j < classes; ++j)  // an infinite delta_ has made the padding NaN
        std::fill(g + j * wide_ + args_.width, g + (j + 1) * wide_, A(0));
      narrow_rows<T>(g, wide_, classes, args_.width, at(args_.grad_weight, task, head_size()));
    }
    double sums[3] = {};
    add_sums(g, v, head, sums);
    const T* v_bias = args_.query_bias ? at(args_.query_bias, task, classes) : nullptr;
    if (v_bias) add_bias(v_bias, at(args_.grad_bias, task, classes), sums);
    for (int m = 0; m < 3; ++m)
      static_cast<A*>(args_.similarity)[3 * task + m] = static_cast<A>(sums[m]);
    const HeadDirection d(args_, sums[0], sums[1]);
    const A* direction = combine(d, g, v, head, direction_);
    for (int64_t j = 0; v_bias && j < classes; ++j)
      shift_[j] = d.of<A>(widen(v_bias[j]), g_bias_[j]);
    multiply_rows(x, n, direction, classes, wide_, [&](int64_t i, int64_t j, A r) {
      s_[j * row_ + i] = v_bias ? r + shift_[j] : r;
    });
    differentiate();
    write(args_.d_features, task, n,
          {Factors<A>{delta_, 1, row_, direction, wide_, classes},
           Factors<A>{s_, 1, row_, weight, wide_, classes}});
    write(args_.d_weight, task, classes, {Factors<A>{s_, row_, 1, x, wide_, n}});
    for (int64_t j = 0; v_bias && j < classes; ++j)
      at(args_.d_bias, task, classes)[j] = narrow<T>(static_cast<A>(row_sum(s_ + j * row_)));
  }

 private:
  // p_, scale_ and delta_ from the logits and targets.
  void evaluate(int64_t task) {
    const int64_t n = args_.n, classes = args_.classes;
    by_class(args_.logits, task, p_);
    if (args_.loss == Loss::mse) {
      const A scale = A(2) / static_cast<A>(n * classes);
      for (int64_t i = 0; i < n; ++i) scale_[i] = scale;
      by_class(args_.targets, task, delta_);
      for (int64_t k = 0; k < classes * row_; k += kLanes<A>)
        store(delta_ + k, scale * (load(p_ + k) - load(delta_ + k)));
      return;
    }
    const int64_t* y = static_cast<const int64_t*>(args_.targets) + task * n;
    int64_t count = 0;
    for (int64_t i = 0; i < n; ++i) count += y[i] != kIgnoredTarget;
    for (int64_t i = 0; i < n; ++i)
      scale_[i] = y[i] == kIgnoredTarget ? A(0) : A(1) / static_cast<A>(count);
    for (int64_t i = 0; i < row_; i += kLanes<A>) softmax(i);
    for (int64_t i = 0; i < n; ++i)
      if (y[i] != kIgnoredTarget) delta_[y[i] * row_ + i] = scale_[i] * (p_[y[i] * row_ + i] - 1);
  }

  // Of the examples in the lanes from i on: in place, and times scale_ to delta_.
  void softmax(int64_t i) {
    const int64_t end = args_.classes * row_;
    Vec<A> top = load(p_ + i), sum = {};
    for (int64_t k = row_; k < end; k += row_) {
      const Vec<A> z = load(p_ + k + i);
      top = z > top ? z : top;
    }
    for (int64_t k = 0; k < end; k += row_) {
      const Vec<A> e = mlp::exp_of<A>(load(p_ + k + i) - top);
      store(p_ + k + i, e);
      sum += e;
    }
    const Vec<A> inverse = 1 / sum, scale = load(scale_ + i);
    for (int64_t k = 0; k < end; k += row_) {
      const Vec<A> p = load(p_ + k + i) * inverse;
      store(p_ + k + i, p);
      store(delta_ + k + i, scale * p);
    }
  }

  // s_ from r, in place: the derivative of delta_ along r.
  void differentiate() {
    const int64_t end = args_.classes * row_;
    for (int64_t i = 0; i < row_; i += kLanes<A>) {
      const Vec<A> scale = load(scale_ + i);
      Vec<A> mean = {};
      if (args_.loss == Loss::mse) {
        for (int64_t k = i; k < end; k += row_) store(s_ + k, scale * load(s_ + k));
        continue;
      }
      for (int64_t k = i; k < end; k += row_) mean += load(p_ + k) * load(s_ + k);
      for (int64_t k = i; k < end; k += row_)
        store(s_ + k, scale * load(p_ + k) * (load(s_ + k) - mean));
    }
  }

  void add_sums(const A* g, const A* v, int64_t size, double* sums) const {
    constexpr int64_t kChunk = 4096;  // floats added up in one lane before double takes over
    for (int64_t k = 0; k < size; k += kChunk) {
      double part[3];
      row_sums(g + k, v + k, std::min(kChunk, size - k), part);
      for (int m = 0; m < 3; ++m) sums[m] += part[m];
    }
  }

  void add_bias(const T* v, T* out, double* sums) {
    for (int64_t j = 0; j < args_.classes; ++j) {
      g_bias_[j] = static_cast<A>(row_sum(delta_ + j * row_));
      out[j] = narrow<T>(g_bias_[j]);
      const double x = g_bias_[j], y = widen(v[j]);
      sums[0] += x * y;
      sums[1] += x * x;
      sums[2] += y * y;
    }
  }

  const A* combine(const HeadDirection& d, const A* g, const A* v, int64_t size, A* out) const {
    if (!d.has_gradient && d.total == 1) return v;
    const A total = static_cast<A>(d.total), along = static_cast<A>(d.along);
    for (int64_t k = 0; k < size; k += kLanes<A>)
      store(out + k,
            d.has_gradient ? total * load(v + k) - along * load(g + k) : total * load(v + k));
    return out;
  }

  double row_sum(const A* row) const {
    Vec<A> total = {};
    for (int64_t i = 0; i < row_; i += kLanes<A>) total += load(row + i);
    return sum<A>(total);
  }

  // A (n, classes) matrix of the task, by class.
  void by_class(const void* from, int64_t task, A* to) {
    const int64_t n = args_.n, classes = args_.classes;
    const T* matrix = at(from, task, n * classes);
    const A* wide;
    if constexpr (std::is_same_v<T, A>) {
      wide = matrix;
    } else {
      widen_rows(matrix, 1, n * classes, narrow_, n * classes);
      wide = narrow_;
    }
    transpose<A>(
        n, classes, row_, [&](int64_t i) { return wide + i * classes; },
        [&](int64_t j) { return to + j * row_; });
  }

  // A (rows, width) matrix of the task with padded rows, in `copy` unless it has them already.
  const A* read(const void* from, int64_t task, int64_t rows, A* copy) const {
    const T* matrix = at(from, task, rows * args_.width);
    if constexpr (std::is_same_v<T, A>)
      if (in_place_) return matrix;
    widen_rows(matrix, rows, args_.width, copy, wide_);
    return copy;
  }

  template <int N>
  void write(void* to, int64_t task, int64_t rows, const Factors<A> (&factors)[N]) {
    A* out = in_place_ ? target(to, task, rows) : out_;
    multiply(out, wide_, rows, wide_, zeros<A>(), factors);
    if (!in_place_) narrow_rows<T>(out, wide_, rows, args_.width, at(to, task, rows * args_.width));
  }

  A* target(void* to, int64_t task, int64_t rows) const {
    return static_cast<A*>(to) + task * rows * args_.width;
  }
  int64_t head_size() const { return args_.classes * args_.width; }
  static const T* at(const void* base, int64_t task, int64_t size) {
    return static_cast<const T*>(base) + task * size;
  }
  static T* at(void* base, int64_t task, int64_t size) {
    return static_cast<T*>(base) + task * size;
  }

  const HeadSimilarityArgs& args_;
  const int64_t row_;    // examples, padded
  const int64_t wide_;   // features, padded
  const bool in_place_;  // inputs and outputs have padded rows of A
  Arena<A> arena_;
  A* p_;          // softmax; logits for the squared error
  A* delta_;      // dloss/dlogits
  A* s_;          // r, then s
  A* scale_;      // weight of each example in the mean
  A* direction_;  // D
  A* g_bias_;
  A* shift_;  // of D, for the bias
  A* narrow_ = nullptr;
  A* x_ = nullptr;
  A* weight_ = nullptr;
  A* v_ = nullptr;
  A* g_ = nullptr;
  A* out_ = nullptr;
};

}  // namespace

void head_similarity(const HeadSimilarityArgs& args, const Parallel& parallel) {
  const int64_t products = args.n * args.classes * args.width;
  dispatch(args.dtype, [&](auto zero) {
    parallel(args.tasks, 1 + kGrain / (products + 1), [&](int64_t begin, int64_t end) {
      Worker<decltype(zero)> worker(args);
      for (int64_t task = begin; task < end; ++task) worker.run(task);
    });
  });
}

}  // namespace fastmeta::cpu::FM_ISA
