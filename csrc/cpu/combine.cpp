#include "cpu/kernels.h"
#include "cpu/rows.h"

namespace fastmeta::cpu::FM_ISA {
namespace {

constexpr int64_t kBlock = 2048;  // columns summed at a time: they fit the L1 cache

template <class T>
void block(const CombineArgs& args, int64_t segment, int64_t begin, int64_t n, T* out) {
  using A = Acc<T>;
  A acc[kBlock];
  memset(acc, 0, sizeof(A) * n);
  const int64_t step = args.segments.count * args.buffers;
  for (int64_t b = 0; b < args.buffers; ++b) {
    const A* coef = static_cast<const A*>(args.coef) + segment * args.buffers + b;
    const T* g = static_cast<const T*>(args.g[b].data) + begin;
    add_rows(g, args.g[b].rows, args.g[b].stride, coef, step, n, acc);
  }
  int64_t p = 0;
  for (; p + kLanes<A> <= n; p += kLanes<A>) store(out + p, load(acc + p));
  for (; p < n; ++p) out[p] = narrow<T>(acc[p]);
}

}  // namespace

void combine(const CombineArgs& args, const Parallel& parallel) {
  const std::vector<CombinePiece> pieces = make_pieces(args, kBlock);
  dispatch(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    parallel(static_cast<int64_t>(pieces.size()), 4, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        const CombinePiece& piece = pieces[k];
        block<T>(args, piece.segment, piece.begin, piece.n, piece_out<T>(args, piece));
      }
    });
  });
}

}  // namespace fastmeta::cpu::FM_ISA
