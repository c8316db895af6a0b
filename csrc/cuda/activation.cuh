// Elementwise activations and their derivatives. Each thread handles 16 bytes of every buffer.
#pragma once

#include "cuda/lanes.cuh"
#include "cuda/launch.h"
#include "fastmeta/activation.h"

namespace fastmeta::cuda {

// The elements of a thread, from `first` on; `left` of them exist.
template <class T>
struct ActivationLanes {
  using A = Acc<T>;
  int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kLanes<T>;
  int64_t left;

  __device__ explicit ActivationLanes(int64_t count) : left(count - first) {}
  __device__ void read(const void* from, A (&x)[kLanes<T>]) const {
    const T* p = static_cast<const T*>(from) + first;
    as_type(left >= kLanes<T> && aligned16(p),
            [&](auto whole) { load_lanes<decltype(whole)::value>(p, left, x); });
  }
  __device__ void write(void* to, const A (&x)[kLanes<T>]) const {
    T* p = static_cast<T*>(to) + first;
    store_lanes(p, left, aligned16(p), x);
  }
};

// Calls body(k, curve) for every element of a thread.
template <class T, class Args, class Body>
__device__ void each_curve(const Args& args, const ActivationLanes<T>& lanes, const Body& body) {
  using A = Acc<T>;
  A x[kLanes<T>];
  lanes.read(args.x, x);
  with_smooth_activation(args.activation, [&](auto f) {
    for (int k = 0; k < kLanes<T>; ++k) body(k, curve<decltype(f)::value, ScalarMath<A>>(x[k]));
  });
}

template <class T>
__global__ void activation_forward_kernel(ActivationForwardArgs args) {
  const ActivationLanes<T> lanes(args.count);
  if (lanes.left <= 0) return;
  Acc<T> y[kLanes<T>];
  each_curve(args, lanes, [&](int k, const Curve<Acc<T>>& f) { y[k] = f.value; });
  lanes.write(args.y, y);
}

template <class T>
__global__ void activation_backward_kernel(ActivationBackwardArgs args) {
  const ActivationLanes<T> lanes(args.count);
  if (lanes.left <= 0) return;
  Acc<T> dout[kLanes<T>];
  lanes.read(args.dout, dout);
  each_curve(args, lanes, [&](int k, const Curve<Acc<T>>& f) { dout[k] *= f.first; });
  lanes.write(args.dx, dout);
}

template <class T>
__global__ void activation_second_kernel(ActivationSecondArgs args) {
  using A = Acc<T>;
  const ActivationLanes<T> lanes(args.count);
  if (lanes.left <= 0) return;
  A dout[kLanes<T>], tdout[kLanes<T>] = {}, tx[kLanes<T>];
  lanes.read(args.dout, dout);
  if (args.tdout) lanes.read(args.tdout, tdout);
  lanes.read(args.tx, tx);
  each_curve(args, lanes, [&](int k, const Curve<A>& f) {
    dout[k] = f.second * dout[k] * tx[k] + f.first * tdout[k];
    tx[k] *= f.first;
  });
  lanes.write(args.dx, dout);
  if (args.tout) lanes.write(args.tout, tx);
}

template <class T>
unsigned activation_blocks(int64_t count) {
  return static_cast<unsigned>(blocks_for(count, kThreads * kLanes<T>));
}

template <class Launch>
void launch_activation_forward(const ActivationForwardArgs& args, const Launch& launch) {
  if (args.count == 0) return;
  dispatch(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch(activation_forward_kernel<T>, activation_blocks<T>(args.count), kThreads, args);
  });
}

template <class Launch>
void launch_activation_backward(const ActivationBackwardArgs& args, const Launch& launch) {
  if (args.count == 0) return;
  dispatch(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch(activation_backward_kernel<T>, activation_blocks<T>(args.count), kThreads, args);
  });
}

template <class Launch>
void launch_activation_second(const ActivationSecondArgs& args, const Launch& launch) {
  if (args.count == 0) return;
  dispatch(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch(activation_second_kernel<T>, activation_blocks<T>(args.count), kThreads, args);
  });
}

}  // namespace fastmeta::cuda
