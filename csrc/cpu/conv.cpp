#include "cpu/conv.h"

#include "cpu/kernels.h"
#include "cpu/thin.h"

namespace fastmeta::cpu::FM_ISA {
namespace {

// The output or the gradient of the input: sums over neighbours in `from`, initialised per group.
template <class T>
struct Correlation {
  const ConvShape& shape;
  bool for_input;
  Images<const T> from;
  Images<T> to;
  const T* weight;
  const T* bias;

  int64_t row() const { return padded<T>(to.c); }
  const T* weight_of(int64_t group) const { return weight + group * 9 * shape.in * shape.out; }
  void write_start(int64_t group, T* start) const {
    if (bias)
      copy_padded(bias + group * to.c, to.c, start);
    else
      memset(start, 0, sizeof(T) * row());
  }
};

// `kinds` of output pixels, which differ in their neighbours.
template <class T>
void run_direct(const Correlation<T>& c, const std::vector<Neighbours>& kinds,
                const Parallel& parallel) {
  const int64_t groups = c.shape.groups, row = c.row(), size = (9 * c.from.c + 1) * row;
  std::vector<Block> blocks;
  int64_t rows = 0, places[9];
  for (size_t k = 0; k < kinds.size(); ++k) {
    append_blocks(kinds[k], static_cast<int>(k), rows * row, c.shape.n, c.from.h, c.from.w, kBlock,
                  blocks);
    kinds[k].place(rows, c.from.c, places);
    rows += kinds[k].count() * c.from.c;
  }
  Arena<T> arena(groups * size);
  T* weights = arena.take(groups * size);
  parallel(groups, grain_of(size), [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      T* to = weights + g * size;
      c.write_start(g, to);
      order_weights(c.weight_of(g), c.shape, places, c.for_input, to + row);
    }
  });
  const int64_t count = static_cast<int64_t>(blocks.size());
  parallel.dynamic(groups * count, grain_of(kBlock * size), [&](const auto& next) {
    direct::Pixels<T, T> pixels(max_pixels(blocks));
    for (int64_t item = next(); item < groups * count; item = next()) {
      const int64_t g = item / count;
      const Block& b = blocks[item % count];
      const T* start = weights + g * size;
      const direct::Weights<T> w{start + row + b.weights, row, kinds[b.kind].x.count, start};
      direct::correlate(c.from, c.to, g * c.shape.n, b, w, pixels);
    }
  });
}

// At stride S, from C channels.
template <int C, int S, class T>
void run_thin(const Correlation<T>& c, const Neighbours& at, const Parallel& parallel) {
  constexpr int64_t kBand = 16;  // output rows
  const int64_t groups = c.shape.groups, row = c.row(), size = (9 * C + 1) * row;
  Arena<T> arena(groups * size);
  T* weights = arena.take(groups * size);
  int64_t places[9];
  at.place(0, C, places);
  for (int64_t g = 0; g < groups; ++g) {
    c.write_start(g, weights + g * size);
    order_weights(c.weight_of(g), c.shape, places, c.for_input, weights + g * size + row);
  }
  const int64_t bands = (c.to.h + kBand - 1) / kBand, items = groups * c.shape.n * bands;
  const int64_t width = (S * (c.to.w - 1) + 3) * C;
  parallel.dynamic(items, grain_of(kBand * c.to.w * size), [&](const auto& next) {
    Arena<T> own((S * (kBand - 1) + 3) * width);
    T* rows = own.take(0);
    for (int64_t item = next(); item < items; item = next()) {
      const int64_t image = item / bands, first = item % bands * kBand;
      const int64_t count = std::min(kBand, c.to.h - first);
      thin::copy_rows<C>(c.from, image, S * first - 1, S * (count - 1) + 3, width, rows);
      const T* start = weights + image / c.shape.n * size;
      for (int64_t y = 0; y < count; ++y)
        thin::panels<C, S, kTileVectors>(rows + S * y * width, width, {start, start + row, row}, 0,
                                         c.to, c.to.at(image, first + y, 0));
    }
  });
}

template <class T>
void run_winograd(const Correlation<T>& c, const Neighbours& at, const Parallel& parallel) {
  const int64_t groups = c.shape.groups, row = c.row(), from_row = padded<T>(c.from.c);
  const int64_t matrix = c.from.c * row, size = winograd::kPositions * matrix + row;
  Arena<T> arena(groups * size);
  T* weights = arena.take(groups * size);
  int64_t places[9];
  at.place(0, c.from.c, places);
  parallel(groups, grain_of(size), [&](int64_t begin, int64_t end) {
    Arena<T> own(9 * matrix);
    T* nine = own.take(9 * matrix);
    for (int64_t g = begin; g < end; ++g) {
      T* to = weights + g * size;
      c.write_start(g, to);
      order_weights(c.weight_of(g), c.shape, places, c.for_input, nine);
      winograd::weight_transform(nine, matrix, to + row);
    }
  });
  const winograd::Tiles tiles(c.to.h, c.to.w);
  const int64_t units = c.shape.n * tiles.count(), blocks = (units + kBlock - 1) / kBlock;
  const int64_t inputs_size = winograd::kPositions * winograd::position_stride<T>(kBlock, from_row);
  const int64_t sums_size = winograd::kPositions * winograd::position_stride<T>(kBlock, row);
  parallel.dynamic(groups * blocks, grain_of(kBlock * size), [&](const auto& next) {
    Arena<T> own(inputs_size + sums_size);
    T* inputs = own.take(inputs_size);
    T* sums = own.take(sums_size);
    for (int64_t item = next(); item < groups * blocks; item = next()) {
      const int64_t image = item / blocks * c.shape.n, first = item % blocks * kBlock;
      const int64_t count = std::min(kBlock, units - first);
      const int64_t input = winograd::position_stride<T>(count, from_row);
      const int64_t sum = winograd::position_stride<T>(count, row);
      const T* start = weights + item / blocks * size;
      tiles.each(first, count, [&](int64_t i, int64_t n, int64_t y, int64_t x) {
        winograd::input_tile(c.from, image + n, y - 1, x - 1, inputs + i * from_row, input);
      });
      for (int k = 0; k < winograd::kPositions; ++k)
        multiply<T, 1>(
            sums + k * sum, count, c.to.c, zeros<T>(),
            {{inputs + k * input, from_row, 1, start + row + k * matrix, row, c.from.c}});
      tiles.each(first, count, [&](int64_t i, int64_t n, int64_t y, int64_t x) {
        winograd::output_tile(sums + i * row, sum, start, c.to, image + n, y, x);
      });
    }
  });
}

template <class T>
void forward(const ConvForwardArgs& args, const Parallel& parallel) {
  const ConvShape& s = args.shape;
  const Correlation<T> c{s,
                         false,
                         {static_cast<const T*>(args.x), s.h, s.w, s.in},
                         {static_cast<T*>(args.y), s.out_h(), s.out_w(), s.out},
                         static_cast<const T*>(args.weight),
                         static_cast<const T*>(args.bias)};
  const Neighbours at{reads_input(s.h, s.stride), reads_input(s.w, s.stride)};
  const bool thin = s.out_w() >= thin::kMostRows;
  if (by_winograd(s))
    run_winograd(c, at, parallel);
  else if (thin && s.in == 1)
    s.stride == 1 ? run_thin<1, 1>(c, at, parallel) : run_thin<1, 2>(c, at, parallel);
  else if (thin && s.in == 3)
    s.stride == 1 ? run_thin<3, 1>(c, at, parallel) : run_thin<3, 2>(c, at, parallel);
  else
    run_direct(c, {at}, parallel);
}

template <class T>
void input(const ConvInputArgs& args, const Parallel& parallel) {
  const ConvShape& s = args.shape;
  const Correlation<T> c{s,
                         true,
                         {static_cast<const T*>(args.dy), s.out_h(), s.out_w(), s.out},
                         {static_cast<T*>(args.dx), s.h, s.w, s.in},
                         static_cast<const T*>(args.weight),
                         nullptr};
  std::vector<Neighbours> kinds;
  for (int y = 0; y < s.stride; ++y)
    for (int x = 0; x < s.stride; ++x)
      kinds.push_back({reads_output(s.h, s.stride, y), reads_output(s.w, s.stride, x)});
  if (by_winograd(s))
    run_winograd(c, kinds.front(), parallel);
  else
    run_direct(c, kinds, parallel);
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
