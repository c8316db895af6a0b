// Elementwise activations and their derivatives. Each thread handles 16 bytes of every buffer.
#pragma once

#include "cuda/lanes.cuh"
#include "cuda/launch.h"
#include "fastmeta/activation.h"

namespace fastmeta::cuda {

// Calls body(k, curve) for every element of a thread.
template <class T, class Args, class Body>
__device__ void each_curve(const Args& args, const ElementLanes<T>& lanes, const Body& body) {
  using A = Acc<T>;
  A x[kLanes<T>];
  lanes.read(args.x, x);
  with_smooth_activation(args.activation, [&](auto f) {
    for (int k = 0; k < kLanes<T>; ++k) body(k, curve<decltype(f)::value, ScalarMath<A>>(x[k]));
  });
}

template <class T>
__global__ void activation_forward_kernel(ActivationForwardArgs args) {
  const ElementLanes<T> lanes(blockIdx.x, args.count);
  if (lanes.left <= 0) return;
  Acc<T> y[kLanes<T>];
  each_curve(args, lanes, [&](int k, const Curve<Acc<T>>& f) { y[k] = f.value; });
  lanes.write(args.y, y);
}

template <class T>
__global__ void activation_backward_kernel(ActivationBackwardArgs args) {
  const ElementLanes<T> lanes(blockIdx.x, args.count);
  if (lanes.left <= 0) return;
  Acc<T> dout[kLanes<T>];
  lanes.read(args.dout, dout);
  each_curve(args, lanes, [&](int k, const Curve<Acc<T>>& f) { dout[k] *= f.first; });
  lanes.write(args.dx, dout);
}

template <class T>
__global__ void activation_second_kernel(ActivationSecondArgs args) {
  using A = Acc<T>;
  const ElementLanes<T> lanes(blockIdx.x, args.count);
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
