// The layers of a sequence, each with its forward and backward pass and the tangents of both along
// a direction of its parameters (Pearlmutter's R-operator).
#pragma once

#include "cpu/matrix.h"
#include "cpu/mlp_math.h"
#include "cpu/norm_passes.h"
#include "cpu/pixels.h"
#include "fastmeta/conv.h"
#include "fastmeta/norm.h"
#include "fastmeta/sequence_plan.h"

namespace fastmeta::cpu::FM_ISA {

#define FM_KERNEL(name, Args) void name(const Args&, const Parallel&);
FM_KERNEL(conv_forward, ConvForwardArgs)
FM_KERNEL(conv_input, ConvInputArgs)
FM_KERNEL(conv_weight, ConvWeightArgs)
FM_KERNEL(norm_backward, NormBackwardArgs)
FM_KERNEL(norm_second, NormSecondArgs)
#undef FM_KERNEL

namespace sequence {

// One layer at one evaluation of a task's examples.
template <class T>
struct At {
  const SequenceLayer& layer;
  int64_t n;
  int64_t step;    // inner step, which selects the parameters
  const T* theta;  // parameters
  T* stats;        // of norms
  T* scratch;
  const Parallel& parallel;

  int64_t shift() const { return layer.shift(step); }
  // The weight and the bias in a vector of parameters; null where the layer, or the vector, has
  // none.
  template <class P>
  P* weight(P* vector) const {
    return vector && layer.weight >= 0 ? vector + layer.weight + shift() : nullptr;
  }
  template <class P>
  P* bias(P* vector) const {
    return vector && layer.bias >= 0 ? vector + layer.bias + shift() : nullptr;
  }
  int64_t in_size() const { return n * layer.in.row; }
  int64_t out_size() const { return n * layer.out.row; }
  // Calls body(part, first) with a few of the examples, see examples_at_a_time(), from `first` on.
  template <class Body>
  void each_part(const Body& body) const {
    const int64_t each = examples_at_a_time(layer, n);
    for (int64_t first = 0; first < n; first += each) {
      const int64_t count = std::min(each, n - first);
      body(At{layer, count, step, theta, stats, scratch, parallel}, first);
    }
  }
};

// What the tangents of a layer's passes depend on.
template <class T>
struct Tangents {
  const T* x;
  const T* dy;
  T* u;        // tangent of x, null for zero; the tangent of its gradient takes its place
  T* ty;       // tangent of y, and later of its gradient
  const T* v;  // direction, null for zero
  T* product;  // of the parameters' gradient
};

template <class T>
void add_to(T* to, const T* from, int64_t size) {
  int64_t i = 0;
  for (; i + kLanes<T> <= size; i += kLanes<T>) store(to + i, load(to + i) + load(from + i));
  for (; i < size; ++i) to[i] += from[i];
}

constexpr DType dtype_of(float) {
  return DType::f32;
}
constexpr DType dtype_of(double) {
  return DType::f64;
}

// 3x3 convolution.
template <class T>
struct Convolution {
  static ConvShape shape(const At<T>& at) {
    const LayerMap& in = at.layer.in;
    return {dtype_of(T{}), 1, at.n, in.h, in.w, in.c, at.layer.out.c, at.layer.option};
  }
  static int64_t weights(const At<T>& at) { return 9 * at.layer.in.c * at.layer.out.c; }

  static void forward(const At<T>& at, const T* x, T* y) {
    conv_forward({shape(at), x, at.weight(at.theta), at.bias(at.theta), y}, at.parallel);
  }
  static void backward(const At<T>& at, const T* x, const T* dy, T* dx, T* grad) {
    weight_gradient(at, x, dy, at.weight(grad), at.bias(grad));
    if (dx) input_gradient(at, dy, dx);
  }
  static void input_gradient(const At<T>& at, const T* dy, T* dx) {
    conv_input({shape(at), dy, at.weight(at.theta), dx}, at.parallel);
  }
  static void r_forward(const At<T>& at, const Tangents<T>& r) {
    const auto along_v = [&](const At<T>& some, const T* x, T* y) {
      conv_forward({shape(some), x, at.weight(r.v), at.bias(r.v), y}, at.parallel);
    };
    if (!r.u) return along_v(at, r.x, r.ty);
    conv_forward({shape(at), r.u, at.weight(at.theta), nullptr, r.ty}, at.parallel);
    if (!r.v) return;
    at.each_part([&](const At<T>& part, int64_t first) {
      along_v(part, r.x + first * at.layer.in.row, second_term(at));
      add_to(r.ty + first * at.layer.out.row, second_term(at), part.out_size());
    });
  }
  static void r_backward(const At<T>& at, const Tangents<T>& r, T* rdx) {
    weight_gradient(at, r.x, r.ty, at.weight(r.product), at.bias(r.product));
    if (r.u) {
      T* dw = at.scratch + whole_vectors(at.layer.out.c);
      weight_gradient(at, r.u, r.dy, dw, nullptr);
      add_to(at.weight(r.product), dw, weights(at));
    }
    if (!rdx) return;
    input_gradient(at, r.ty, rdx);
    if (!r.v) return;
    at.each_part([&](const At<T>& part, int64_t first) {
      const T* dy = r.dy + first * at.layer.out.row;
      conv_input({shape(part), dy, at.weight(r.v), second_term(at)}, at.parallel);
      add_to(rdx + first * at.layer.in.row, second_term(at), part.in_size());
    });
  }

 private:
  // Without a bias, its gradient goes to the scratch.
  static void weight_gradient(const At<T>& at, const T* x, const T* dy, T* dw, T* db) {
    conv_weight({shape(at), x, dy, dw, db ? db : at.scratch}, at.parallel);
  }
  static T* second_term(const At<T>& at) {
    return at.scratch + whole_vectors(at.layer.out.c) + whole_vectors(weights(at));
  }
};

// BatchNorm, perhaps ReLU, and perhaps 2x2 max-pooling.
template <class T>
struct Norm {
  static NormInput input(const At<T>& at, const T* x) {
    const LayerMap& in = at.layer.in;
    return {dtype_of(T{}),
            1,
            at.n,
            in.c,
            in.h,
            in.w,
            at.layer.number,
            (at.layer.option & kNormPools) != 0,
            x,
            at.weight(at.theta),
            at.bias(at.theta),
            (at.layer.option & kNormLinear) != 0};
  }
  static T* mean(const At<T>& at) { return at.stats + at.layer.stats; }
  static T* var(const At<T>& at) { return mean(at) + at.layer.in.c; }

  static NormForwardArgs forward_args(const At<T>& at, const T* x, T* y) {
    return {input(at, x), y, mean(at), var(at)};
  }
  static NormBackwardArgs backward_args(const At<T>& at, const T* x, const T* dy, T* dx, T* grad) {
    return {input(at, x), mean(at), var(at), dy, dx, at.weight(grad), at.bias(grad)};
  }
  // At given statistics, and sums over all images: see sequence_network.h.
  static void forward(const At<T>& at, const T* x, T* y) {
    norm_apply(forward_args(at, x, y), at.parallel);
  }
  static void r_forward(const At<T>& at, const Tangents<T>& r) {
    if (!r.v) memset(at.scratch, 0, sizeof(T) * at.layer.in.c);
    norm_second({input(at, r.x), mean(at), var(at), r.dy, r.u, r.v ? at.weight(r.v) : at.scratch,
                 r.v ? at.bias(r.v) : at.scratch, r.ty, r.u, at.weight(r.product)},
                at.parallel);
  }
  static void r_backward(const At<T>& at, const Tangents<T>& r, T* rdx) {
    T *dw = at.scratch, *dx = at.scratch + whole_vectors(at.layer.in.c);
    const auto args = [&](const At<T>& some, int64_t first) {
      NormBackwardArgs args = backward_args(some, r.x + first * at.layer.in.row,
                                            r.ty + first * at.layer.out.row, dx, r.product);
      args.dweight = dw;
      return args;
    };
    NormBackwardSums sums;
    sums.add(args(at, 0), at.parallel);
    at.each_part([&](const At<T>& part, int64_t first) {
      sums.apply(args(part, first), static_cast<double>(at.n * at.layer.in.h * at.layer.in.w),
                 at.parallel);
      add_to(rdx + first * at.layer.in.row, dx, part.in_size());
    });
    add_to(at.weight(r.product), dw, at.layer.in.c);
  }
};

// An activation, element by element.
template <class T>
struct Elementwise {
  // Calls body(i, lanes) for every vector of elements.
  template <class Body>
  static void each(const At<T>& at, const Body& body) {
    at.parallel(at.n, 1 + 4096 / at.layer.in.row, [&](int64_t begin, int64_t end) {
      const int64_t first = begin * at.layer.in.row;
      each_vector<T>((end - begin) * at.layer.in.row,
                     [&](auto lanes, int64_t i) { body(lanes, first + i); });
    });
  }
  // Calls body(curve) with a function of a vector that returns value and derivatives.
  template <class Body>
  static void with_curve(const At<T>& at, const Body& body) {
    if (at.layer.option == kLeakyRelu) {
      const T slope = static_cast<T>(at.layer.number);
      return body([slope](Vec<T> x) -> Curve<Vec<T>> {
        const Vec<T> one = splat<T>(1);
        return {x > 0 ? x : slope * x, x > 0 ? one : slope * one, Vec<T>{}};
      });
    }
    with_activation(static_cast<Activation>(at.layer.option), [&](auto f) {
      body([](Vec<T> x) { return curve<decltype(f)::value, mlp::VectorMath<T>>(x); });
    });
  }

  static void forward(const At<T>& at, const T* x, T* y) {
    with_curve(at, [&](const auto& f) {
      each(at, [&](auto lanes, int64_t i) { lanes.store(y + i, f(lanes.load(x + i)).value); });
    });
  }
  static void backward(const At<T>& at, const T* x, const T* dy, T* dx, T*) {
    if (!dx) return;
    with_curve(at, [&](const auto& f) {
      each(at, [&](auto lanes, int64_t i) {
        lanes.store(dx + i, f(lanes.load(x + i)).first * lanes.load(dy + i));
      });
    });
  }
  static void r_forward(const At<T>& at, const Tangents<T>& r) {
    with_curve(at, [&](const auto& f) {
      each(at, [&](auto lanes, int64_t i) {
        const Curve<Vec<T>> c = f(lanes.load(r.x + i));
        const Vec<T> u = lanes.load(r.u + i);
        lanes.store(r.ty + i, c.first * u);
        lanes.store(r.u + i, c.second * u * lanes.load(r.dy + i));
      });
    });
  }
  static void r_backward(const At<T>& at, const Tangents<T>& r, T* rdx) {
    with_curve(at, [&](const auto& f) {
      each(at, [&](auto lanes, int64_t i) {
        const Vec<T> first = f(lanes.load(r.x + i)).first;
        lanes.store(rdx + i, lanes.load(rdx + i) + first * lanes.load(r.ty + i));
      });
    });
  }
};

}  // namespace sequence
}  // namespace fastmeta::cpu::FM_ISA
