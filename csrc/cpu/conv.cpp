#include "cpu/conv.h"

#include "cpu/kernels.h"

namespace fastmeta::cpu::FM_ISA {
namespace {

// One sum over neighbours, the output or the gradient in the input, for all images.
template <class T>
class Correlation {
 public:
  Correlation(const ConvShape& shape, const Neighbours& at, bool for_input, bool winograd,
              const Images<const T>& from, const Images<T>& to)
      : shape_(shape), at_(at), for_input_(for_input), winograd_(winograd), from_(from), to_(to) {}

  void run(const T* weight, const T* bias, const Parallel& parallel) const {
    const int64_t groups = shape_.groups, blocks = blocks_of(units());
    Arena<T> arena(groups * (weights_size() + row_));
    T* weights = arena.take(groups * weights_size());
    T* start = arena.take_zeros(groups * row_);
    parallel(groups, grain_of(weights_size()), [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; ++g) {
        order(weight + g * 9 * shape_.in * shape_.out, weights + g * weights_size());
        if (bias) copy(bias + g * to_.c, to_.c, start + g * row_);
      }
    });
    const int64_t work = std::min(units(), kBlock) * weights_size();
    parallel(groups * blocks, grain_of(work), [&](int64_t begin, int64_t end) {
      Arena<T> own(block_size());
      T* memory = own.take(block_size());
      for (int64_t item = begin; item < end; ++item) {
        const int64_t g = item / blocks, first = item % blocks * kBlock;
        block(g, first, std::min(units() - first, kBlock), weights + g * weights_size(),
              start + g * row_, memory);
      }
    });
  }

 private:
  int64_t tile_rows() const { return (to_.h + 1) / 2; }
  int64_t tile_columns() const { return (to_.w + 1) / 2; }
  // Tiles or pixels of a group.
  int64_t units() const {
    return shape_.n * (winograd_ ? tile_rows() * tile_columns() : at_.pixels());
  }
  int64_t depth() const { return at_.count() * from_.c; }
  int64_t weights_size() const {
    return (winograd_ ? winograd::kPlaces * from_.c : depth()) * row_;
  }
  int64_t block_size() const {
    const int64_t each = winograd_ ? winograd::kPlaces * (from_row_ + row_) : depth() + row_;
    return kBlock * each + kLanes<T>;
  }

  void order(const T* weight, T* to) const {
    if (!winograd_) return order_weights(weight, shape_, at_, for_input_, to);
    Arena<T> own(9 * from_.c * row_);
    T* nine = own.take(9 * from_.c * row_);
    order_weights(weight, shape_, at_, for_input_, nine);
    winograd::weight_transform(nine, from_.c * row_, to);
  }

  void block(int64_t group, int64_t first, int64_t count, const T* weights, const T* start,
             T* memory) const {
    if (winograd_)
      tiles(group * shape_.n, first, count, weights, start, memory);
    else
      pixels(group * shape_.n, first, count, weights, start, memory);
  }

  void pixels(int64_t image, int64_t first, int64_t count, const T* weights, const T* start,
              T* memory) const {
    T* out = memory + count * row_;
    const bool in_place = at_.y.apart == 1 && row_ == to_.c;
    T* sums = in_place ? to_.at(image, 0, 0) + first * to_.c : memory;
    gather({from_.at(image, 0, 0), from_.h, from_.w, from_.c}, at_, first, first + count, out);
    for (int64_t k = 0; k < depth(); k += kDepth) {
      const int64_t some = std::min(kDepth, depth() - k);
      multiply<T, 1>(sums, count, to_.c, k ? Start<T>{sums, row_, 1} : Start<T>{start, 0, 1},
                     {{out + k, depth(), 1, weights + k * row_, row_, some}});
    }
    if (in_place) return;
    Pixel p(first, at_.y.size, at_.x.size);
    for (int64_t i = 0; i < count; ++i, p.next(at_.y.size, at_.x.size))
      copy(sums + i * row_, to_.c,
           to_.at(image + p.image, at_.y.begin + at_.y.apart * p.y,
                  at_.x.begin + at_.x.apart * p.x));
  }

  void tiles(int64_t image, int64_t first, int64_t count, const T* weights, const T* start,
             T* memory) const {
    const int64_t in = count * from_row_, out = count * row_;
    T* sums = memory + winograd::kPlaces * in;
    Pixel p(first, tile_rows(), tile_columns());
    for (int64_t i = 0; i < count; ++i, p.next(tile_rows(), tile_columns()))
      winograd::input_tile(from_, image + p.image, 2 * p.y - 1, 2 * p.x - 1, memory + i * from_row_,
                           in);
    for (int k = 0; k < winograd::kPlaces; ++k)
      multiply<T, 1>(
          sums + k * out, count, to_.c, zeros<T>(),
          {{memory + k * in, from_row_, 1, weights + k * from_.c * row_, row_, from_.c}});
    p = Pixel(first, tile_rows(), tile_columns());
    for (int64_t i = 0; i < count; ++i, p.next(tile_rows(), tile_columns()))
      winograd::output_tile(sums + i * row_, out, start, to_, image + p.image, 2 * p.y, 2 * p.x);
  }

  const ConvShape& shape_;
  const Neighbours at_;
  const bool for_input_;
  const bool winograd_;
  const Images<const T> from_;
  const Images<T> to_;
  const int64_t row_ = padded<T>(to_.c);
  const int64_t from_row_ = padded<T>(from_.c);
};

template <class T>
void forward(const ConvForwardArgs& args, const Parallel& parallel) {
  const ConvShape& s = args.shape;
  const Neighbours at{reads_input(s.h, s.stride), reads_input(s.w, s.stride)};
  const Images<const T> x{static_cast<const T*>(args.x), s.h, s.w, s.in};
  const Images<T> y{static_cast<T*>(args.y), s.out_h(), s.out_w(), s.out};
  Correlation<T>(s, at, false, by_winograd(s), x, y)
      .run(static_cast<const T*>(args.weight), static_cast<const T*>(args.bias), parallel);
}

template <class T>
void input(const ConvInputArgs& args, const Parallel& parallel) {
  const ConvShape& s = args.shape;
  const Images<const T> dy{static_cast<const T*>(args.dy), s.out_h(), s.out_w(), s.out};
  const Images<T> dx{static_cast<T*>(args.dx), s.h, s.w, s.in};
  for (int odd_y = 0; odd_y < s.stride; ++odd_y)
    for (int odd_x = 0; odd_x < s.stride; ++odd_x) {
      const Neighbours at{reads_output(s.h, s.stride, odd_y), reads_output(s.w, s.stride, odd_x)};
      Correlation<T>(s, at, true, by_winograd(s), dy, dx)
          .run(static_cast<const T*>(args.weight), nullptr, parallel);
    }
}

}  // namespace

void conv_forward(const ConvForwardArgs& args, const Parallel& parallel) {
  if (args.shape.dtype == DType::f64)
    forward<double>(args, parallel);
  else
    forward<float>(args, parallel);
}

void conv_input(const ConvInputArgs& args, const Parallel& parallel) {
  if (args.shape.dtype == DType::f64)
    input<double>(args, parallel);
  else
    input<float>(args, parallel);
}

}  // namespace fastmeta::cpu::FM_ISA
