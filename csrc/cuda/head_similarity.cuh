// head_similarity kernel: a block computes one task after the other.
#pragma once

#include "cuda/launch.h"
#include "cuda/mlp_loss.cuh"
#include "fastmeta/head_similarity_plan.h"

namespace fastmeta::cuda {

// Calls put(row, column, sum), where add(m, column, rows, sums) has added the terms m = 0 .. depth
// of the sums of kRows rows. Neighbouring threads have neighbouring columns.
template <class A, int kRows, class Add, class Put>
__device__ void sum_columns(int rows, int columns, int depth, const Add& add, const Put& put) {
  const int groups = (rows + kRows - 1) / kRows;
  for (int t = threadIdx.x; t < groups * columns; t += kThreads) {
    const int column = t % columns;
    int row[kRows];
    for (int r = 0; r < kRows; ++r) {  // past the end: the last row, not written
      const int at = t / columns + r * groups;
      row[r] = at < rows ? at : rows - 1;
    }
    A sum[kRows] = {};
    for (int m = 0; m < depth; ++m) add(m, column, row, sum);
    for (int r = 0; r < kRows; ++r)
      if (t / columns + r * groups < rows) put(row[r], column, sum[r]);
  }
}

template <class A, class Add, class Put>
__device__ void sum_columns(int rows, int columns, int depth, const Add& add, const Put& put) {
  if (rows * columns < 4 * kThreads)
    sum_columns<A, 1>(rows, columns, depth, add, put);
  else
    sum_columns<A, 4>(rows, columns, depth, add, put);
}

// Matrices (examples, classes) of a task, D (classes, width) and biases (classes).
template <class A>
struct HeadMemory {
  A* p;      // softmax
  A* delta;  // dloss/dlogits
  A* s;      // r, then s
  A* g_bias;
  A* shift;      // D of the bias
  A* direction;  // g, then D of the weight
};

template <class T>
struct HeadTask {
  using A = Acc<T>;

  const HeadSimilarityArgs& args;
  const HeadMemory<A>& memory;
  int64_t task;
  int n, classes, width;

  __device__ void run() const {
    const A scale = mean_weight();
    evaluate(scale);
    __syncthreads();
    const HeadDirection d = gradient();
    combine(d);
    __syncthreads();
    multiply_by_direction();
    __syncthreads();
    differentiate(scale);
    __syncthreads();
    write_derivatives();
    __syncthreads();  // before the next task overwrites the memory
  }

 private:
  // The weight of an example (for mse, of an element) in the mean. NaN if a class is invalid: an
  // error would require a synchronization with the GPU.
  __device__ A mean_weight() const {
    if (args.loss == Loss::mse) return A(2) / static_cast<A>(n * classes);
    __shared__ double counts[2];
    const int64_t* y = classes_of_task();
    int counted = 0, invalid = 0;
    for (int i = threadIdx.x; i < n; i += kThreads) {
      counted += y[i] != kIgnoredTarget;
      invalid += y[i] != kIgnoredTarget && (y[i] < 0 || y[i] >= classes);
    }
    const double sums[2] = {block_sum(counted), block_sum(invalid)};
    if (threadIdx.x == 0)
      for (int k = 0; k < 2; ++k) counts[k] = sums[k];
    __syncthreads();
    return counts[1] > 0 ? static_cast<A>(NAN) : A(1) / static_cast<A>(counts[0]);
  }

  __device__ bool ignored(int i) const { return classes_of_task()[i] == kIgnoredTarget; }

  __device__ void evaluate(A scale) const {
    const T* z = of_task(args.logits, n * classes);
    if (args.loss == Loss::mse) {
      const T* y = of_task(args.targets, n * classes);
      for (int k = threadIdx.x; k < n * classes; k += kThreads)
        memory.delta[k] = scale * (widen(z[k]) - widen(y[k]));
      return;
    }
    for (int i = threadIdx.x; i < n; i += kThreads) {
      const int at = i * classes;
      for (int j = 0; j < classes; ++j) memory.p[at + j] = widen(z[at + j]);
      softmax(memory.p + at, classes, memory.p + at);
      const int64_t y = classes_of_task()[i];
      for (int j = 0; j < classes; ++j)
        memory.delta[at + j] =
            y == kIgnoredTarget ? A(0) : scale * (memory.p[at + j] - static_cast<A>(j == y));
    }
  }

  // The support gradient and its inner products. Each thread adds up its own elements first.
  __device__ HeadDirection gradient() const {
    __shared__ double totals[3];
    A sums[3] = {};
    const auto add_products = [&](A g, A v) {
      sums[0] += g * v;
      sums[1] += g * g;
      sums[2] += v * v;
    };
    const T *x = of_task(args.features, n * width), *v = of_task(args.query_weight, head_size());
    T* out = of_task(args.grad_weight, head_size());
    sum_columns<A>(
        classes, width, n,
        [&](int i, int k, const auto& row, auto& sum) {
          const A right = widen(x[i * width + k]);
          for (int r = 0; r < count(sum); ++r) sum[r] += memory.delta[i * classes + row[r]] * right;
        },
        [&](int j, int k, A g) {
          const int at = j * width + k;
          memory.direction[at] = g;
          out[at] = narrow<T>(g);
          add_products(g, widen(v[at]));
        });
    if (args.query_bias) {
      const T* v_bias = of_task(args.query_bias, classes);
      T* bias = of_task(args.grad_bias, classes);
      for (int j = threadIdx.x; j < classes; j += kThreads) {
        const A g = sum_over_examples(memory.delta, j);
        memory.g_bias[j] = g;
        bias[j] = narrow<T>(g);
        add_products(g, widen(v_bias[j]));
      }
    }
    const double all[3] = {block_sum(sums[0]), block_sum(sums[1]), block_sum(sums[2])};
    if (threadIdx.x == 0)
      for (int m = 0; m < 3; ++m) {
        totals[m] = all[m];
        static_cast<A*>(args.similarity)[3 * task + m] = static_cast<A>(all[m]);
      }
    __syncthreads();
    return HeadDirection(args, totals[0], totals[1]);
  }

  __device__ void combine(const HeadDirection& d) const {
    const T* v = of_task(args.query_weight, head_size());
    for (int k = threadIdx.x; k < head_size(); k += kThreads)
      memory.direction[k] = d.of(widen(v[k]), memory.direction[k]);
    if (!args.query_bias) return;
    const T* v_bias = of_task(args.query_bias, classes);
    for (int j = threadIdx.x; j < classes; j += kThreads)
      memory.shift[j] = d.of(widen(v_bias[j]), memory.g_bias[j]);
  }

  // r to s: one inner product of length `width` per warp.
  __device__ void multiply_by_direction() const {
    const T* x = of_task(args.features, n * width);
    const int lane = threadIdx.x % kWarp;
    for (int k = threadIdx.x / kWarp; k < n * classes; k += kThreads / kWarp) {
      const T* left = x + k / classes * width;
      const A* right = memory.direction + k % classes * width;
      A sum = 0;
      for (int m = lane; m < width; m += kWarp) sum += widen(left[m]) * right[m];
      const double total = warp_sum(sum);
      if (lane == 0)
        memory.s[k] = static_cast<A>(total) + (args.query_bias ? memory.shift[k % classes] : A(0));
    }
  }

  // s from r, in place.
  __device__ void differentiate(A scale) const {
    if (args.loss == Loss::mse) {
      for (int k = threadIdx.x; k < n * classes; k += kThreads) memory.s[k] *= scale;
      return;
    }
    for (int i = threadIdx.x; i < n; i += kThreads) {
      const A* p = memory.p + i * classes;
      A *s = memory.s + i * classes, mean = 0;
      for (int j = 0; j < classes; ++j) mean += p[j] * s[j];
      for (int j = 0; j < classes; ++j) s[j] = ignored(i) ? A(0) : scale * p[j] * (s[j] - mean);
    }
  }

  __device__ void write_derivatives() const {
    const T *x = of_task(args.features, n * width), *w = of_task(args.weight, head_size());
    T *d_features = of_task(args.d_features, n * width),
      *d_weight = of_task(args.d_weight, head_size());
    sum_columns<A>(
        n, width, classes,
        [&](int j, int k, const auto& row, auto& sum) {
          const A d = memory.direction[j * width + k], u = widen(w[j * width + k]);
          for (int r = 0; r < count(sum); ++r) {
            const int at = row[r] * classes + j;
            sum[r] += memory.delta[at] * d + memory.s[at] * u;
          }
        },
        [&](int i, int k, A value) { d_features[i * width + k] = narrow<T>(value); });
    sum_columns<A>(
        classes, width, n,
        [&](int i, int k, const auto& row, auto& sum) {
          const A right = widen(x[i * width + k]);
          for (int r = 0; r < count(sum); ++r) sum[r] += memory.s[i * classes + row[r]] * right;
        },
        [&](int j, int k, A value) { d_weight[j * width + k] = narrow<T>(value); });
    if (!args.query_bias) return;
    T* d_bias = of_task(args.d_bias, classes);
    for (int j = threadIdx.x; j < classes; j += kThreads)
      d_bias[j] = narrow<T>(sum_over_examples(memory.s, j));
  }

  __device__ A sum_over_examples(const A* matrix, int j) const {
    A total = 0;
    for (int i = 0; i < n; ++i) total += matrix[i * classes + j];
    return total;
  }

  template <int kRows>
  __device__ static constexpr int count(const A (&)[kRows]) {
    return kRows;
  }

  __device__ int head_size() const { return classes * width; }
  __device__ const int64_t* classes_of_task() const {
    return static_cast<const int64_t*>(args.targets) + task * n;
  }
  __device__ const T* of_task(const void* all, int64_t size) const {
    return static_cast<const T*>(all) + task * size;
  }
  __device__ T* of_task(void* all, int64_t size) const {
    return static_cast<T*>(all) + task * size;
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    head_similarity_kernel(const __grid_constant__ HeadSimilarityArgs args,
                           const __grid_constant__ HeadPlan plan, Acc<T>* scratch) {
  using A = Acc<T>;
  A *shared = dynamic_shared<A>(), *own = scratch + blockIdx.x * plan.scratch;
  const int n = static_cast<int>(args.n), classes = static_cast<int>(args.classes);
  A* examples = plan.examples_in_shared ? shared : own;
  A* direction = plan.direction_in_shared ? shared + (plan.examples_in_shared ? plan.examples : 0)
                                          : own + (plan.examples_in_shared ? 0 : plan.examples);
  const int size = n * classes;
  const HeadMemory<A> memory{examples,
                             examples + size,
                             examples + 2 * size,
                             examples + 3 * size,
                             examples + 3 * size + classes,
                             direction};
  for (int64_t task = blockIdx.x; task < args.tasks; task += gridDim.x)
    HeadTask<T>{args, memory, task, n, classes, static_cast<int>(args.width)}.run();
}

template <class Launch>
void launch_head_similarity(const HeadSimilarityArgs& args, const HeadPlan& plan, void* scratch,
                            const Launch& launch) {
  if (args.tasks == 0) return;
  dispatch(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch.with_shared(plan.shared * sizeof(Acc<T>))(head_similarity_kernel<T>,
                                                     static_cast<unsigned>(plan.blocks), kThreads,
                                                     args, plan, static_cast<Acc<T>*>(scratch));
  });
}

}  // namespace fastmeta::cuda
