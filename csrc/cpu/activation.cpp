// Elementwise activations and their derivatives.
#include "cpu/kernels.h"
#include "cpu/mlp_math.h"
#include "cpu/vectors.h"

namespace fastmeta::cpu::FM_ISA {
namespace {

constexpr int64_t kGrain = 4096;  // elements of a thread

// Calls body(curve, load, store) with the activation's curve at every vector of x.
template <class Args, class Body>
void each_curve(const Args& args, const Parallel& parallel, const Body& body) {
  dispatch(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    with_smooth_activation(args.activation, [&](auto f) {
      parallel(args.count, kGrain, [&](int64_t begin, int64_t end) {
        each_vector<T>(begin, end, [&](const auto& get, const auto& put) {
          body(curve<decltype(f)::value, mlp::VectorMath<Acc<T>>>(get(args.x, 0)), get, put);
        });
      });
    });
  });
}

}  // namespace

void activation_forward(const ActivationForwardArgs& args, const Parallel& parallel) {
  each_curve(args, parallel,
             [&](const auto& f, const auto&, const auto& put) { put(args.y, f.value); });
}

void activation_backward(const ActivationBackwardArgs& args, const Parallel& parallel) {
  each_curve(args, parallel, [&](const auto& f, const auto& get, const auto& put) {
    put(args.dx, f.first * get(args.dout, 0));
  });
}

void activation_second(const ActivationSecondArgs& args, const Parallel& parallel) {
  each_curve(args, parallel, [&](const auto& f, const auto& get, const auto& put) {
    const auto tx = get(args.tx, 0);
    auto dx = f.second * get(args.dout, 0) * tx;
    if (args.tdout) dx += f.first * get(args.tdout, 0);
    put(args.dx, dx);
    if (args.tout) put(args.tout, f.first * tx);
  });
}

}  // namespace fastmeta::cpu::FM_ISA
