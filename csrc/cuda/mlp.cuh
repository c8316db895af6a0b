// mlp_step kernel: a block runs the whole meta-step of one task after the other.
#pragma once

#include "cuda/launch.h"
#include "cuda/mlp_loss.cuh"

namespace fastmeta::cuda {

// The meta-step of one task, in the block's memory.
template <class T>
struct TaskStep {
  const MlpArgs& args;
  const MlpPlan& plan;
  T* shared;
  T* scratch;
  int64_t task;

  __device__ void run() const {
    const Data<T> support = examples(args.support), query = examples(args.query);
    read_weights();
    for (int64_t k = 0; k < args.steps; ++k) {
      const T value = evaluate(weights(k), support, tape(k));
      if (k == 0) report(value, args.support_loss);
      inner_step(support, k);
    }
    const Tape<T> last = tape(args.steps);
    const T value = evaluate(weights(args.steps), query, last);
    if (args.steps == 0) report(value, args.support_loss);
    report(value, args.query_loss);
    write_output(last);
    T* row = task_row(args.rows);
    T* direction = plan.direction.at(0, shared, scratch);
    gradients(plan, query, last, {}, [&](int at, int param, T g) {
      row[param] = g;
      if (args.exact) direction[at] = g;
    });
    if (args.exact) pull_back(support, direction, row);
  }

  __device__ void inner_step(const Data<T>& support, int64_t k) const {
    const T rate = static_cast<T>(args.lr);
    const T* w = weights(k);
    T* next = weights(k + 1);
    T* inner = args.inner ? task_row(args.inner) : nullptr;
    gradients(plan, support, tape(k), {}, [&](int at, int param, T g) {
      next[at] = w[at] - rate * g;
      if (!inner) return;
      const T sum = k > 0 ? inner[param] + g : g;
      inner[param] = k + 1 < args.steps ? sum : sum / static_cast<T>(args.steps);
    });
  }

  // The reverse sweep: v <- v - lr H_k v from the last step to the first. The tangents reuse the
  // tape of the query set.
  __device__ void pull_back(const Data<T>& support, T* v, T* row) const {
    const T rate = static_cast<T>(args.lr);
    const Tape<T> tangent = tape(args.steps);
    for (int64_t k = args.steps; k-- > 0;) {
      r_forward(plan, weights(k), v, support, tape(k), tangent);
      r_loss(args.loss, plan, support, tape(k), tangent);
      r_backward(plan, weights(k), v, support, tape(k), tangent);
      gradients(plan, support, tape(k), tangent, [&](int at, int param, T product) {
        v[at] -= rate * product;
        row[param] = v[at];
      });
    }
  }

  __device__ T evaluate(const T* w, const Data<T>& data, const Tape<T>& tape) const {
    forward(plan, w, data, tape);
    const T value = loss(args.loss, plan, data, tape);
    backward(plan, w, data, tape);
    return value;
  }

  // The initialisation, shared by all tasks.
  __device__ void read_weights() const {
    T* w = weights(0);
    for (int l = 0; l < plan.count; ++l) {
      const MlpPlanLayer& layer = plan.layers[l];
      const T* weight = static_cast<const T*>(layer.weight);
      const T* bias = static_cast<const T*>(layer.bias);
      for (int k = threadIdx.x; k < layer.out * layer.in; k += kThreads)
        w[layer.set + k / layer.in * layer.row + k % layer.in] = weight[k];
      for (int j = threadIdx.x; bias && j < layer.out; j += kThreads)
        w[layer.set + layer.out * layer.row + j] = bias[j];
    }
    __syncthreads();
  }

  __device__ void write_output(const Tape<T>& tape) const {
    const MlpPlanLayer& last = plan.layers[plan.count - 1];
    const int64_t size = args.query.n * last.out;
    T* to = static_cast<T*>(args.query_output) + task * size;
    for (int64_t k = threadIdx.x; k < size; k += kThreads)
      to[k] = tape.out[args.query.n * last.units + k];
  }

  __device__ void report(T value, void* losses) const {
    if (threadIdx.x == 0) static_cast<T*>(losses)[task] = value;
  }

  __device__ Data<T> examples(const MlpExamples& all) const {
    const int out = plan.layers[plan.count - 1].out, n = static_cast<int>(all.n);
    const int64_t target = args.loss == Loss::cross_entropy ? sizeof(int64_t) : out * sizeof(T);
    const T* x = static_cast<const T*>(all.x) + task * all.n * plan.layers[0].in;
    const void* y = static_cast<const char*>(all.y) + task * all.n * target;
    return {x, y, n, inv_example_count<T>(args.loss, y, n, out)};
  }

  // After k inner steps; first order keeps the latest only.
  __device__ T* weights(int64_t k) const {
    return plan.weights.at(args.exact ? k : 0, shared, scratch);
  }

  // Of the evaluation before inner step k, or of the query set.
  __device__ Tape<T> tape(int64_t k) const {
    const bool kept = args.exact && k < args.steps;
    T* out = kept ? plan.tapes.at(k, shared, scratch) : plan.tape.at(0, shared, scratch);
    const int64_t size = kept ? plan.tapes.size / 4 : plan.tape.size / 3;
    return {out, out + size, out + 2 * size, kept ? out + 3 * size : nullptr};
  }

  __device__ T* task_row(void* rows) const { return static_cast<T*>(rows) + task * plan.params; }
};

// One block per multiprocessor: it takes all the shared memory, so it may take all registers, too.
template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    mlp_step_kernel(const __grid_constant__ MlpArgs args, const __grid_constant__ MlpPlan plan,
                    T* scratch) {
  T* own = scratch + blockIdx.x * plan.scratch;
  for (int64_t task = blockIdx.x; task < args.tasks; task += gridDim.x)
    TaskStep<T>{args, plan, dynamic_shared<T>(), own, task}.run();
}

template <class Launch>
void launch_mlp_step(const MlpArgs& args, const MlpPlan& plan, void* scratch,
                     const Launch& launch) {
  if (args.tasks == 0) return;
  const auto start = [&](auto kernel, auto* memory) {
    launch.with_shared(plan.shared * sizeof(*memory))(kernel, static_cast<unsigned>(plan.blocks),
                                                      kThreads, args, plan, memory);
  };
  if (args.dtype == DType::f64)
    start(mlp_step_kernel<double>, static_cast<double*>(scratch));
  else
    start(mlp_step_kernel<float>, static_cast<float*>(scratch));
}

}  // namespace fastmeta::cuda
