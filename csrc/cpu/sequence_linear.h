// Pooling and linear layers of a sequence.
#pragma once

#include "cpu/sequence_layers.h"

namespace fastmeta::cpu::FM_ISA {
namespace sequence {

// Pooling with windows as wide as their stride, which leave out the pixels at the edges that fill
// none; or, as a mean, over the whole map. Each is a linear map at a given x, whose tangents are
// those of linear layers without parameters.
template <class T, bool kMax>
struct Pooling {
  static void forward(const At<T>& at, const T* x, T* y) { pool(at, x, x, y); }
  static void backward(const At<T>& at, const T* x, const T* dy, T* dx, T*) {
    if (dx) spread(at, x, dy, dx);
  }
  static void r_forward(const At<T>& at, const Tangents<T>& r) { pool(at, r.x, r.u, r.ty); }
  static void r_backward(const At<T>& at, const Tangents<T>& r, T* rdx) {
    spread(at, r.x, r.ty, rdx);
  }

 private:
  // Calls body(lanes, first, out, rows, columns) for every window and vector of channels: offsets
  // of its first pixel and of its output, and its size.
  template <class Body>
  static void each_window(const At<T>& at, const Body& body) {
    const LayerMap &in = at.layer.in, &out = at.layer.out;
    const int64_t rows = at.layer.option ? at.layer.option : in.h;
    const int64_t columns = at.layer.option ? at.layer.option : in.w;
    at.parallel(at.n * out.h, 1 + 4096 / (in.w * in.c), [&](int64_t begin, int64_t end) {
      for (int64_t band = begin; band < end; ++band)
        for (int64_t j = 0; j < out.w; ++j) {
          const int64_t image = band / out.h, row = band % out.h * rows;
          const int64_t first = ((image * in.h + row) * in.w + j * columns) * in.c;
          each_vector<T>(in.c, [&](auto lanes, int64_t c) {
            body(lanes, first + c, (band * out.w + j) * in.c + c, rows, columns);
          });
        }
    });
  }
  // Calls body(at) for the pixels of a window.
  template <class Body>
  static void each_pixel(const At<T>& at, int64_t first, int64_t rows, int64_t columns,
                         const Body& body) {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) body(first + (i * at.layer.in.w + j) * at.layer.in.c);
  }
  static void pool(const At<T>& at, const T* x, const T* from, T* to) {
    each_window(at, [&](auto lanes, int64_t first, int64_t out, int64_t rows, int64_t columns) {
      Vec<T> top = lanes.load(x + first), value = kMax ? lanes.load(from + first) : Vec<T>{};
      each_pixel(at, first, rows, columns, [&](int64_t p) {
        const Vec<T> here = lanes.load(from + p);
        if constexpr (!kMax) {
          value += here;
        } else {
          const Vec<T> candidate = lanes.load(x + p);
          value = candidate > top ? here : value;
          top = candidate > top ? candidate : top;
        }
      });
      lanes.store(to + out, kMax ? value : value / static_cast<T>(rows * columns));
    });
  }
  // The transpose; `to` may be x itself.
  static void spread(const At<T>& at, const T* x, const T* from, T* to) {
    const LayerMap &in = at.layer.in, &out = at.layer.out;
    const int64_t rows = at.layer.option ? at.layer.option * out.h : in.h;
    const int64_t columns = at.layer.option ? at.layer.option * out.w : in.w;
    for (int64_t i = 0; i < at.n * in.h; ++i) {
      const int64_t outside = i % in.h < rows ? columns : 0;
      memset(to + (i * in.w + outside) * in.c, 0, sizeof(T) * (in.w - outside) * in.c);
    }
    each_window(at, [&](auto lanes, int64_t first, int64_t out_at, int64_t rows, int64_t columns) {
      const Vec<T> value = lanes.load(from + out_at);
      if constexpr (!kMax) {
        const Vec<T> share = value / static_cast<T>(rows * columns);
        each_pixel(at, first, rows, columns, [&](int64_t p) { lanes.store(to + p, share); });
      } else {
        Vec<T> top = lanes.load(x + first);
        each_pixel(at, first, rows, columns, [&](int64_t p) {
          const Vec<T> candidate = lanes.load(x + p);
          top = candidate > top ? candidate : top;
        });
        Vec<T> rest = value;  // until the first pixel that is the maximum
        each_pixel(at, first, rows, columns, [&](int64_t p) {
          const Vec<T> here = lanes.load(x + p) < top ? Vec<T>{} : rest;
          rest = lanes.load(x + p) < top ? rest : Vec<T>{};
          lanes.store(to + p, here);
        });
      }
    });
  }
};

// A linear layer. torch's weights are (out, in), with inputs in the order (channel, pixel); here
// they are in that of memory, (pixel, channel).
template <class T>
struct Linear {
  // Weights of one layer in both layouts, with padded rows, and the bias.
  struct Weights {
    T* by_output;
    T* by_input;
    T* bias;
  };

  static void forward(const At<T>& at, const T* x, T* y) {
    const Weights w = read(at, at.theta, at.scratch);
    multiply<T, 1>(y, row(at), at.n, out(at), {w.bias, 0, 1}, {along(at, x, w)});
  }
  static void backward(const At<T>& at, const T* x, const T* dy, T* dx, T* grad) {
    const Weights w = read(at, at.theta, at.scratch);
    T* sums = second(at, w);
    multiply<T, 1>(sums, row(at), in(at), out(at), zeros<T>(), {pairs(at, x, dy)});
    write(at, sums, dy, w, grad);
    if (!dx) return;
    multiply<T, 1>(w.by_input, in_row(at), at.n, in(at), zeros<T>(), {back(at, dy, w)});
    copy_rows(at, w.by_input, dx);
  }
  static void r_forward(const At<T>& at, const Tangents<T>& r) {
    const Weights w = read(at, at.theta, at.scratch);
    if (!r.v) return multiply<T, 1>(r.ty, row(at), at.n, out(at), zeros<T>(), {along(at, r.u, w)});
    const Weights v = read(at, r.v, second(at, w));
    const Start<T> start{v.bias, 0, 1};
    if (r.u)
      multiply<T, 2>(r.ty, row(at), at.n, out(at), start, {along(at, r.x, v), along(at, r.u, w)});
    else
      multiply<T, 1>(r.ty, row(at), at.n, out(at), start, {along(at, r.x, v)});
  }
  static void r_backward(const At<T>& at, const Tangents<T>& r, T* rdx) {
    const Weights w = read(at, at.theta, at.scratch);
    T* sums = second(at, w);
    if (r.u)
      multiply<T, 2>(sums, row(at), in(at), out(at), zeros<T>(),
                     {pairs(at, r.x, r.ty), pairs(at, r.u, r.dy)});
    else
      multiply<T, 1>(sums, row(at), in(at), out(at), zeros<T>(), {pairs(at, r.x, r.ty)});
    write(at, sums, r.ty, w, r.product);
    if (!rdx) return;
    if (r.v) {
      const Weights v = read(at, r.v, sums);
      multiply<T, 2>(w.by_input, in_row(at), at.n, in(at), zeros<T>(),
                     {back(at, r.ty, w), back(at, r.dy, v)});
    } else {
      multiply<T, 1>(w.by_input, in_row(at), at.n, in(at), zeros<T>(), {back(at, r.ty, w)});
    }
    copy_rows(at, w.by_input, rdx);
  }

 private:
  static int64_t in(const At<T>& at) { return at.layer.in.size(); }
  static int64_t out(const At<T>& at) { return at.layer.out.c; }
  static int64_t row(const At<T>& at) { return at.layer.out.row; }
  static int64_t in_row(const At<T>& at) { return whole_vectors(in(at)); }
  static T* second(const At<T>& at, const Weights& w) {
    return w.by_input + std::max(at.n, row(at)) * in_row(at);
  }
  static Factors<T> along(const At<T>& at, const T* x, const Weights& w) {
    return {x, at.layer.in.row, 1, w.by_input, row(at), in(at)};
  }
  static Factors<T> pairs(const At<T>& at, const T* x, const T* dy) {
    return {x, 1, at.layer.in.row, dy, row(at), at.n};
  }
  static Factors<T> back(const At<T>& at, const T* dy, const Weights& w) {
    return {dy, row(at), 1, w.by_output, in_row(at), out(at)};
  }
  // Calls body(pixel, channel) for the inputs, in torch's order.
  template <class Body>
  static void each_input(const At<T>& at, const Body& body) {
    const LayerMap& in = at.layer.in;
    const int64_t pixels = in.h * in.w;
    for (int64_t c = 0; c < in.c; ++c)
      for (int64_t p = 0; p < pixels; ++p) body(p * in.c + c);
  }
  static Weights read(const At<T>& at, const T* vector, T* to) {
    const Weights w{to + row(at), to + row(at) + out(at) * in_row(at), to};
    memset(to, 0, sizeof(T) * (row(at) + out(at) * in_row(at)));
    if (at.layer.bias >= 0) memcpy(w.bias, at.bias(vector), sizeof(T) * out(at));
    const T* from = at.weight(vector);
    for (int64_t o = 0; o < out(at); ++o)
      each_input(at, [&](int64_t i) { w.by_output[o * in_row(at) + i] = *from++; });
    transpose<T>(
        out(at), in(at), row(at), [&](int64_t o) { return w.by_output + o * in_row(at); },
        [&](int64_t i) { return w.by_input + i * row(at); });
    return w;
  }
  // The gradients of weight, from sums (in, out), and bias; the weights' bias is overwritten.
  static void write(const At<T>& at, const T* sums, const T* dy, const Weights& w, T* grad) {
    T* to = at.weight(grad);
    for (int64_t o = 0; o < out(at); ++o)
      each_input(at, [&](int64_t i) { *to++ = sums[i * row(at) + o]; });
    if (at.layer.bias < 0) return;
    for (int64_t o = 0; o < row(at); o += kLanes<T>) {
      Vec<T> sum{};
      for (int64_t i = 0; i < at.n; ++i) sum += load(dy + i * row(at) + o);
      store(w.bias + o, sum);
    }
    memcpy(at.bias(grad), w.bias, sizeof(T) * out(at));
  }
  static void copy_rows(const At<T>& at, const T* from, T* to) {
    for (int64_t i = 0; i < at.n; ++i)
      memcpy(to + i * at.layer.in.row, from + i * in_row(at), sizeof(T) * in(at));
  }
};

}  // namespace sequence
}  // namespace fastmeta::cpu::FM_ISA
