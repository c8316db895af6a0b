#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace fastmeta::cpu::FM_ISA {
namespace {

constexpr int64_t kBlock = 2048;  // columns summed at a time, in the first-level cache

// acc[p] += c * row[p]: one multiply-add an element, so unit weights keep the bits of plain
// addition.
template <class T>
void add_row(const T* row, Acc<T> c, int64_t n, Acc<T>* acc) {
  using A = Acc<T>;
  const int64_t whole = n / kLanes<A> * kLanes<A>;
  for (int64_t p = 0; p < whole; p += kLanes<A>) store(acc + p, load(acc + p) + c * load(row + p));
  for (int64_t p = whole; p < n; ++p) acc[p] += c * widen(row[p]);
}

// Four rows in one sweep of acc; the additions keep the order of the rows.
template <class T>
void add_rows(const T* row, int64_t stride, const Acc<T>* c, int64_t step, int64_t n, Acc<T>* acc) {
  using A = Acc<T>;
  const int64_t whole = n / kLanes<A> * kLanes<A>;
  for (int64_t p = 0; p < whole; p += kLanes<A>) {
    Vec<A> x = load(acc + p);
    for (int64_t r = 0; r < 4; ++r) x += c[r * step] * load(row + r * stride + p);
    store(acc + p, x);
  }
  for (int64_t p = whole; p < n; ++p)
    for (int64_t r = 0; r < 4; ++r) acc[p] += c[r * step] * widen(row[r * stride + p]);
}

template <class T>
void block(const CombineArgs& args, int64_t segment, int64_t begin, int64_t n, T* out) {
  using A = Acc<T>;
  A acc[kBlock];
  memset(acc, 0, sizeof(A) * n);
  const int64_t tasks = args.g[0].rows;
  const int64_t step = args.segments.count * args.buffers;
  for (int64_t b = 0; b < args.buffers; ++b) {
    const A* coef = static_cast<const A*>(args.coef) + segment * args.buffers + b;
    const T* g = static_cast<const T*>(args.g[b].data) + begin;
    const int64_t stride = args.g[b].stride;
    int64_t i = 0;
    for (; i + 4 <= tasks; i += 4) add_rows(g + i * stride, stride, coef + i * step, step, n, acc);
    for (; i < tasks; ++i) add_row(g + i * stride, coef[i * step], n, acc);
  }
  int64_t p = 0;
  for (; p + kLanes<A> <= n; p += kLanes<A>) store(out + p, load(acc + p));
  for (; p < n; ++p) out[p] = narrow<T>(acc[p]);
}

// Columns of one block: inside one segment of coef and one output tensor.
struct Piece {
  int64_t segment;
  int64_t begin;
  int64_t n;
  int64_t tensor;
};

std::vector<Piece> make_pieces(Segments segments, Segments tensors) {
  std::vector<Piece> pieces;
  int64_t s = 0;
  for (int64_t t = 0; t < tensors.count; ++t)
    for (int64_t begin = tensors.bounds[t]; begin < tensors.bounds[t + 1];) {
      while (segments.bounds[s + 1] <= begin) ++s;
      int64_t end = begin + kBlock;
      if (end > segments.bounds[s + 1]) end = segments.bounds[s + 1];
      if (end > tensors.bounds[t + 1]) end = tensors.bounds[t + 1];
      pieces.push_back({s, begin, end - begin, t});
      begin = end;
    }
  return pieces;
}

}  // namespace

void combine(const CombineArgs& args, const Parallel& parallel) {
  const std::vector<Piece> pieces = make_pieces(args.segments, args.pieces);
  dispatch(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    parallel(static_cast<int64_t>(pieces.size()), 4, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        const Piece& piece = pieces[k];
        T* out = static_cast<T*>(args.out[piece.tensor]) + piece.begin -
                 args.pieces.bounds[piece.tensor];
        block<T>(args, piece.segment, piece.begin, piece.n, out);
      }
    });
  });
}

}  // namespace fastmeta::cpu::FM_ISA
