#include "cpu/conv.h"
#include "cpu/kernels.h"

namespace fastmeta::cpu::FM_ISA {
namespace {

constexpr int64_t kChunk = 8 * kBlock;  // least pixels or tiles of a partial sum
constexpr int64_t kMostChunks = 16;

// The gradients in weight and bias. Partial sums over chunks of pixels (or tiles), cut by sizes
// alone, are added in order; a partial sum of pixels is three, by the rows of the kernel.
template <class T>
class WeightGradient {
 public:
  explicit WeightGradient(const ConvWeightArgs& args)
      : args_(args),
        shape_(args.shape),
        winograd_(by_winograd(shape_)),
        x_{static_cast<const T*>(args.x), shape_.h, shape_.w, shape_.in},
        dy_{static_cast<const T*>(args.dy), shape_.out_h(), shape_.out_w(), shape_.out} {}

  void run(const Parallel& parallel) const {
    const int64_t parts = shape_.groups * chunks_;
    Arena<T> arena(parts * part_size());
    T* sums = arena.take(parts * part_size());
    const int64_t rows = winograd_ ? 1 : 3, work = units_ / chunks_ * part_size() / rows;
    parallel(parts * rows, grain_of(work), [&](int64_t begin, int64_t end) {
      Arena<T> own(block_size());
      T* memory = own.take(block_size());
      for (int64_t item = begin; item < end; ++item)
        chunk(item / rows, static_cast<int>(item % rows), sums + item / rows * part_size(), memory);
    });
    parallel(shape_.groups * pieces(), grain_of(chunks_ * kPiece), [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item)
        add_parts(sums + item / pieces() * chunks_ * part_size(), item % pieces() * kPiece);
    });
    parallel(shape_.groups, grain_of(part_size()), [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; ++g) write(g, sums + g * chunks_ * part_size());
    });
  }

 private:
  static constexpr int64_t kPiece = 4096;

  int64_t matrix_size() const { return (winograd_ ? winograd::kPlaces : 9) * shape_.in * row_; }
  int64_t part_size() const { return matrix_size() + row_; }  // and the bias
  int64_t pieces() const { return (part_size() + kPiece - 1) / kPiece; }
  int64_t block_size() const {
    const int64_t each = winograd_ ? winograd::kPlaces * (in_row_ + row_) : 3 * shape_.in + row_;
    return kBlock * each + kLanes<T>;
  }

  // Units of chunk `k` begin at: even shares.
  int64_t begin_of(int64_t k) const { return units_ * k / chunks_; }

  void chunk(int64_t part, int kernel_row, T* sums, T* memory) const {
    const int64_t image = part / chunks_ * shape_.n, k = part % chunks_;
    T* bias = sums + matrix_size();
    if (winograd_) {
      clear(part_size(), sums);
    } else {
      clear(3 * shape_.in * row_, sums + kernel_row * 3 * shape_.in * row_);
      if (kernel_row == 0) clear(row_, bias);
    }
    for (int64_t first = begin_of(k); first < begin_of(k + 1); first += kBlock) {
      const int64_t count = std::min(kBlock, begin_of(k + 1) - first);
      if (winograd_)
        add_tiles(image, first, count, sums, bias, memory);
      else
        add_pixels(image, first, count, kernel_row, sums, bias, memory);
    }
  }

  void add_pixels(int64_t image, int64_t first, int64_t count, int kernel_row, T* sums, T* bias,
                  T* memory) const {
    Neighbours at{reads_input(shape_.h, shape_.stride), reads_input(shape_.w, shape_.stride)};
    at.y.first += kernel_row;
    at.y.count = 1;
    const int64_t run = 3 * shape_.in;
    const T* dy = dy_.at(image, 0, 0) + first * shape_.out;
    if (row_ != shape_.out) {
      T* rows = memory + count * run;
      for (int64_t i = 0; i < count; ++i) copy(dy + i * shape_.out, shape_.out, rows + i * row_);
      dy = rows;
    }
    gather({x_.at(image, 0, 0), x_.h, x_.w, x_.c}, at, first, first + count, memory);
    add_product(memory, run, run, dy, count, sums + kernel_row * run * row_);
    if (kernel_row == 0) add_rows(dy, count, bias);
  }

  void add_tiles(int64_t image, int64_t first, int64_t count, T* sums, T* bias, T* memory) const {
    const int64_t rows = (shape_.h + 1) / 2, columns = (shape_.w + 1) / 2;
    const int64_t in = count * in_row_, out = count * row_;
    T* of_dy = memory + winograd::kPlaces * in;
    Pixel p(first, rows, columns);
    for (int64_t i = 0; i < count; ++i, p.next(rows, columns)) {
      winograd::input_tile(x_, image + p.image, 2 * p.y - 1, 2 * p.x - 1, memory + i * in_row_, in);
      winograd::gradient_tile(dy_, image + p.image, 2 * p.y, 2 * p.x, of_dy + i * row_, out);
    }
    for (int k = 0; k < winograd::kPlaces; ++k)
      add_product(memory + k * in, in_row_, shape_.in, of_dy + k * out, count,
                  sums + k * shape_.in * row_);
    add_rows(of_dy + 5 * out, count, bias);  // in the middle, the transform is the tile's sum
  }

  // sums (rows, out) += left' dy
  void add_product(const T* left, int64_t left_row, int64_t rows, const T* dy, int64_t count,
                   T* sums) const {
    multiply<T, 1>(sums, rows, shape_.out, {sums, row_, 1}, {{left, 1, left_row, dy, row_, count}});
  }
  void add_rows(const T* dy, int64_t count, T* bias) const {
    static constexpr T kOne = 1;
    multiply<T, 1>(bias, 1, shape_.out, {bias, 0, 1}, {{&kOne, 0, 0, dy, row_, count}});
  }

  void add_parts(T* parts, int64_t first) const {
    const int64_t end = std::min(first + kPiece, part_size());
    for (int64_t i = first; i < end; i += kLanes<T>) {
      Vec<T> sum = load(parts + i);
      for (int64_t k = 1; k < chunks_; ++k) sum += load(parts + k * part_size() + i);
      store(parts + i, sum);
    }
  }

  void write(int64_t group, const T* sums) const {
    const int64_t in = shape_.in, out = shape_.out;
    copy(sums + matrix_size(), out, static_cast<T*>(args_.dbias) + group * out);
    T* to = static_cast<T*>(args_.dweight) + group * 9 * in * out;
    Arena<T> own(9 * in * row_);
    const T* nine = sums;
    if (winograd_) {
      T* folded = own.take(9 * in * row_);
      winograd::weight_gradient(sums, in * row_, folded);
      nine = folded;
    }
    transpose<T>(
        9 * in, out, 9 * in, [&](int64_t k) { return nine + (k % 9 * in + k / 9) * row_; },
        [&](int64_t o) { return to + o * 9 * in; });
  }

  const ConvWeightArgs& args_;
  const ConvShape& shape_;
  const bool winograd_;
  const Images<const T> x_;
  const Images<const T> dy_;
  const int64_t row_ = padded<T>(shape_.out);
  const int64_t in_row_ = padded<T>(shape_.in);
  const int64_t units_ =
      shape_.n * (winograd_ ? (shape_.h + 1) / 2 * ((shape_.w + 1) / 2) : dy_.h * dy_.w);
  const int64_t chunks_ = std::clamp<int64_t>(units_ / kChunk, 1, kMostChunks);
};

}  // namespace

void conv_weight(const ConvWeightArgs& args, const Parallel& parallel) {
  if (args.shape.dtype == DType::f64)
    WeightGradient<double>(args).run(parallel);
  else
    WeightGradient<float>(args).run(parallel);
}

}  // namespace fastmeta::cpu::FM_ISA
