#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace fastmeta::cpu::FM_ISA {
namespace {

// Tiles of kTile x kTile rows: 2 kTile loads feed kTile^2 multiply-adds.
constexpr int64_t kTile = 4;
// Columns per block, so that the rows of a block stay in cache for all its tiles.
constexpr int64_t kBlock = 1024;

template <class A>
struct Rows {
  const A* data;
  int64_t stride;
  const A* operator[](int64_t i) const { return data + i * stride; }
};

// partial[i, j] += <row_i, row_j> for one tile; rows past the last are never accessed.
template <class A, int64_t NI, int64_t NJ>
void tile(Rows<A> rows, int64_t i0, int64_t j0, int64_t n, double* partial, int64_t tasks) {
  Vec<A> acc[NI][NJ] = {};
  const int64_t whole = n / kLanes<A> * kLanes<A>;
  for (int64_t p = 0; p < whole; p += kLanes<A>) {
    Vec<A> right[NJ];
    for (int64_t j = 0; j < NJ; ++j) right[j] = load(rows[j0 + j] + p);
    for (int64_t i = 0; i < NI; ++i) {
      const Vec<A> left = load(rows[i0 + i] + p);
      for (int64_t j = 0; j < NJ; ++j) acc[i][j] += left * right[j];
    }
  }
  for (int64_t i = 0; i < NI; ++i)
    for (int64_t j = 0; j < NJ; ++j) {
      double total = sum<A>(acc[i][j]);
      for (int64_t p = whole; p < n; ++p)
        total += static_cast<double>(rows[i0 + i][p]) * static_cast<double>(rows[j0 + j][p]);
      partial[(i0 + i) * tasks + j0 + j] += total;
    }
}

template <class A, int64_t NI>
void tile_row(Rows<A> rows, int64_t i0, int64_t j0, int64_t nj, int64_t n, double* partial,
              int64_t tasks) {
  switch (nj) {
    case 1:
      return tile<A, NI, 1>(rows, i0, j0, n, partial, tasks);
    case 2:
      return tile<A, NI, 2>(rows, i0, j0, n, partial, tasks);
    case 3:
      return tile<A, NI, 3>(rows, i0, j0, n, partial, tasks);
    default:
      return tile<A, NI, kTile>(rows, i0, j0, n, partial, tasks);
  }
}

template <class A>
void block(Rows<A> rows, int64_t tasks, int64_t n, double* partial) {
  for (int64_t i = 0; i < tasks; i += kTile)
    for (int64_t j = 0; j <= i; j += kTile) {
      const int64_t ni = tasks - i < kTile ? tasks - i : kTile;
      const int64_t nj = tasks - j < kTile ? tasks - j : kTile;
      switch (ni) {
        case 1:
          tile_row<A, 1>(rows, i, j, nj, n, partial, tasks);
          break;
        case 2:
          tile_row<A, 2>(rows, i, j, nj, n, partial, tasks);
          break;
        case 3:
          tile_row<A, 3>(rows, i, j, nj, n, partial, tasks);
          break;
        default:
          tile_row<A, kTile>(rows, i, j, nj, n, partial, tasks);
      }
    }
}

// 16-bit rows are widened once per block rather than once per tile.
template <class T>
void widen_block(const Matrix& g, int64_t begin, int64_t n, float* staged) {
  for (int64_t i = 0; i < g.rows; ++i) {
    const T* row = static_cast<const T*>(g.data) + i * g.stride + begin;
    float* out = staged + i * kBlock;
    int64_t p = 0;
    for (; p + kLanes<float> <= n; p += kLanes<float>) store(out + p, load(row + p));
    for (; p < n; ++p) out[p] = widen(row[p]);
  }
}

template <class T>
void chunk_partial(const GramArgs& args, Chunk chunk, double* partial, float* staged) {
  for (int64_t begin = chunk.begin; begin < chunk.end; begin += kBlock) {
    const int64_t n = chunk.end - begin < kBlock ? chunk.end - begin : kBlock;
    if constexpr (sizeof(T) == 2) {
      widen_block<T>(args.g, begin, n, staged);
      block<float>({staged, kBlock}, args.g.rows, n, partial);
    } else {
      block<T>({static_cast<const T*>(args.g.data) + begin, args.g.stride}, args.g.rows, n,
               partial);
    }
  }
}

template <class A>
void finish(const GramArgs& args, const std::vector<Chunk>& chunks) {
  const int64_t tasks = args.g.rows;
  std::vector<double> total(args.segments.count * tasks * tasks);
  for (size_t c = 0; c < chunks.size(); ++c)
    for (int64_t k = 0; k < tasks * tasks; ++k)
      total[chunks[c].segment * tasks * tasks + k] += args.partial[c * tasks * tasks + k];
  A* out = static_cast<A*>(args.out);
  for (int64_t s = 0; s < args.segments.count; ++s)
    for (int64_t i = 0; i < tasks; ++i)
      for (int64_t j = 0; j <= i; ++j) {
        const A value = static_cast<A>(total[(s * tasks + i) * tasks + j]);
        out[(s * tasks + i) * tasks + j] = value;
        out[(s * tasks + j) * tasks + i] = value;
      }
}

}  // namespace

void gram(const GramArgs& args, const Parallel& parallel) {
  const int64_t tasks = args.g.rows;
  const std::vector<Chunk> chunks = make_chunks(args.segments, args.g.cols);
  dispatch(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    parallel(static_cast<int64_t>(chunks.size()), 1, [&](int64_t begin, int64_t end) {
      std::vector<float> staged(sizeof(T) == 2 ? tasks * kBlock : 0);
      for (int64_t c = begin; c < end; ++c) {
        double* partial = args.partial + c * tasks * tasks;
        memset(partial, 0, sizeof(double) * tasks * tasks);
        chunk_partial<T>(args, chunks[c], partial, staged.data());
      }
    });
    finish<Acc<T>>(args, chunks);
  });
}

}  // namespace fastmeta::cpu::FM_ISA
