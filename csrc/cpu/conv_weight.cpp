#include "cpu/conv.h"
#include "cpu/kernels.h"

namespace fastmeta::cpu::FM_ISA {
namespace {

constexpr int64_t kMaxChunks = 16;

// The gradients of weight and bias of all groups. Partial sums over chunks of pixels, whose bounds
// depend on sizes alone, are added in order. A part is `positions` matrices (in, out) and the bias.
template <class T>
struct PartialSums {
  const ConvShape& shape;
  int64_t positions;
  int64_t units;   // blocks per group, distributed evenly over the chunks
  int64_t chunks;  // per group
  int64_t row = padded<T>(shape.out);
  int64_t matrix = shape.in * row;
  int64_t part = positions * matrix + row;
  Arena<T> arena{shape.groups * chunks * part};
  T* parts = arena.take(shape.groups * chunks * part);

  PartialSums(const ConvShape& shape_, int64_t positions_, int64_t units_, int64_t min_units)
      : shape(shape_),
        positions(positions_),
        units(units_),
        chunks(std::clamp<int64_t>(units_ / min_units, 1, kMaxChunks)) {}

  int64_t begin(int64_t chunk) const { return units * (chunk % chunks) / chunks; }
  int64_t end(int64_t chunk) const { return units * (chunk % chunks + 1) / chunks; }

  // Adds the parts of each group to its first part.
  void add(const Parallel& parallel) const {
    if (chunks == 1) return;
    constexpr int64_t kPiece = 4096;
    const int64_t pieces = (part + kPiece - 1) / kPiece;
    parallel(shape.groups * pieces, grain_of(chunks * kPiece), [&](int64_t from, int64_t to) {
      for (int64_t item = from; item < to; ++item) {
        T* first = parts + item / pieces * chunks * part;
        const int64_t at = item % pieces * kPiece;
        for (int64_t i = at; i < std::min(at + kPiece, part); i += kLanes<T>) {
          Vec<T> sum = load(first + i);
          for (int64_t k = 1; k < chunks; ++k) sum += load(first + k * part + i);
          store(first + i, sum);
        }
      }
    });
  }

  // Writes the bias of a group, and the weight from nine matrices.
  void write(const ConvWeightArgs& args, int64_t group, const T* nine) const {
    const int64_t in = shape.in, out = shape.out;
    copy(parts + group * chunks * part + positions * matrix, out,
         static_cast<T*>(args.dbias) + group * out);
    T* to = static_cast<T*>(args.dweight) + group * 9 * in * out;
    transpose<T>(
        9 * in, out, 9 * in, [&](int64_t k) { return nine + (k % 9 * in + k / 9) * row; },
        [&](int64_t o) { return to + o * 9 * in; });
  }
};

// bias += the sum of the rows.
template <class T>
void add_rows(const T* rows, int64_t row, int64_t count, int64_t out, T* bias) {
  static constexpr T kOne = 1;
  multiply<T, 1>(bias, 1, out, {bias, 0, 1}, {{&kOne, 0, 0, rows, row, count}});
}

// Adds a block's pixels to rows [first, end) of the 3x3 kernel and, with row 0, to the bias. Pixels
// of dy that do not fill their vectors are copied to `rows`.
template <class T>
void add_block(const ConvShape& s, const Images<const T>& x, const Images<const T>& dy,
               int64_t image, const Block& b, int64_t first, int64_t end,
               const PartialSums<T>& sums, T* part, direct::Pixels<T, const T>& pixels, T* rows) {
  const Axis &v = b.at.y, &h = b.at.x;
  const int64_t count = b.pixels();
  pixels.find(x, dy, image, b);
  if (s.out != sums.row)
    for (int64_t k = 0; k < count; ++k) {
      copy_padded(pixels.own[k], s.out, rows + k * sums.row);
      pixels.own[k] = rows + k * sums.row;
    }
  for (int64_t k = std::max(first, v.skipped); k < std::min(end, v.skipped + v.count); ++k)
    multiply_all(direct::OuterProducts<T>{part + (3 * k + h.skipped) * sums.matrix, sums.row,
                                          pixels.neighbours.data(), (k - v.skipped) * x.w * x.c,
                                          pixels.own.data(), count},
                 h.count * s.in, s.out);
  if (first > 0) return;
  T* bias = part + 9 * sums.matrix;
  for (int64_t o = 0; o < sums.row; o += kLanes<T>) {
    Vec<T> sum{};
    for (int64_t k = 0; k < count; ++k) sum += load(pixels.own[k] + o);
    store(bias + o, load(bias + o) + sum);
  }
}

template <class T>
void run_direct(const ConvWeightArgs& args, const Parallel& parallel) {
  const ConvShape& s = args.shape;
  const Images<const T> x{static_cast<const T*>(args.x), s.h, s.w, s.in};
  const Images<const T> dy{static_cast<const T*>(args.dy), s.out_h(), s.out_w(), s.out};
  std::vector<Block> blocks;
  append_blocks({reads_input(s.h, s.stride), reads_input(s.w, s.stride)}, 0, 0, s.n, s.h, s.w,
                kBlock, blocks);
  const PartialSums<T> sums(s, 9, static_cast<int64_t>(blocks.size()), 8);
  const int64_t limit = max_pixels(blocks);
  // Small images have a single chunk: with enough channels, kernel rows are separate work items.
  const int64_t slabs = s.in < 16 ? 1 : 3;
  const int64_t work = sums.units * kBlock / sums.chunks * 9 / slabs * sums.matrix;
  const int64_t items = s.groups * sums.chunks * slabs;
  parallel.dynamic(items, grain_of(work), [&](const auto& next) {
    Arena<T> own(limit * sums.row);
    direct::Pixels<T, const T> pixels(limit);
    for (int64_t item = next(); item < items; item = next()) {
      const int64_t chunk = item / slabs, first = item % slabs * 3 / slabs;
      T* part = sums.parts + chunk * sums.part;
      memset(part + first * 3 * sums.matrix, 0, sizeof(T) * 9 / slabs * sums.matrix);
      if (first == 0) memset(part + 9 * sums.matrix, 0, sizeof(T) * sums.row);
      for (int64_t k = sums.begin(chunk); k < sums.end(chunk); ++k)
        add_block(s, x, dy, chunk / sums.chunks * s.n, blocks[k], first, first + 3 / slabs, sums,
                  part, pixels, own.take(0));
    }
  });
  sums.add(parallel);
  parallel(s.groups, grain_of(sums.part), [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g)
      sums.write(args, g, sums.parts + g * sums.chunks * sums.part);
  });
}

template <class T>
void run_winograd(const ConvWeightArgs& args, const Parallel& parallel) {
  const ConvShape& s = args.shape;
  const Images<const T> x{static_cast<const T*>(args.x), s.h, s.w, s.in};
  const Images<const T> dy{static_cast<const T*>(args.dy), s.h, s.w, s.out};
  const winograd::Tiles tiles(s.h, s.w);
  const int64_t units = s.n * tiles.count();
  const PartialSums<T> sums(s, winograd::kPositions, units, 8 * kBlock);
  const int64_t row = sums.row, in_row = padded<T>(s.in);
  const int64_t chunks = s.groups * sums.chunks;
  const int64_t inputs_size = winograd::kPositions * winograd::position_stride<T>(kBlock, in_row);
  const int64_t outputs_size = winograd::kPositions * winograd::position_stride<T>(kBlock, row);
  parallel.dynamic(chunks, 1, [&](const auto& next) {
    Arena<T> own(inputs_size + outputs_size);
    T* inputs = own.take(inputs_size);
    T* outputs = own.take(outputs_size);
    for (int64_t chunk = next(); chunk < chunks; chunk = next()) {
      const int64_t image = chunk / sums.chunks * s.n;
      T* to = sums.parts + chunk * sums.part;
      memset(to, 0, sizeof(T) * sums.part);
      for (int64_t first = sums.begin(chunk); first < sums.end(chunk); first += kBlock) {
        const int64_t count = std::min(kBlock, sums.end(chunk) - first);
        const int64_t input = winograd::position_stride<T>(count, in_row);
        const int64_t output = winograd::position_stride<T>(count, row);
        tiles.each(first, count, [&](int64_t i, int64_t n, int64_t ty, int64_t tx) {
          winograd::input_tile(x, image + n, ty - 1, tx - 1, inputs + i * in_row, input);
          winograd::gradient_tile(dy, image + n, ty, tx, outputs + i * row, output);
        });
        for (int k = 0; k < winograd::kPositions; ++k) {
          T* position = to + k * sums.matrix;
          multiply<T, 1>(position, s.in, s.out, {position, row, 1},
                         {{inputs + k * input, 1, in_row, outputs + k * output, row, count}});
        }
        // The element of A dy A' at (1, 1), position 5, is the sum of the tile.
        add_rows(outputs + 5 * output, row, count, s.out, to + winograd::kPositions * sums.matrix);
      }
    }
  });
  sums.add(parallel);
  parallel(s.groups, grain_of(sums.part), [&](int64_t begin, int64_t end) {
    Arena<T> own(9 * sums.matrix);
    T* nine = own.take(9 * sums.matrix);
    for (int64_t g = begin; g < end; ++g) {
      winograd::weight_gradient(sums.parts + g * sums.chunks * sums.part, sums.matrix, nine);
      sums.write(args, g, nine);
    }
  });
}

template <class T>
void weight(const ConvWeightArgs& args, const Parallel& parallel) {
  if (by_winograd(args.shape))
    run_winograd<T>(args, parallel);
  else
    run_direct<T>(args, parallel);
}

}  // namespace

void conv_weight(const ConvWeightArgs& args, const Parallel& parallel) {
  if (args.shape.dtype == DType::f64)
    weight<double>(args, parallel);
  else
    weight<float>(args, parallel);
}

}  // namespace fastmeta::cpu::FM_ISA
