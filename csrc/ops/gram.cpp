// The gram op: schema, checks, allocation and dispatch.
#include "cpu/kernels.h"
#include "ops/tensors.h"

namespace fastmeta {
namespace {

Tensor gram(const Tensor& g, const Ints& bounds) {
  const Tensor rows = dense_rows(g, "gram");
  const Segments parts = segments(bounds, g.size(1), "gram");
  const Matrix m = matrix(rows);
  Tensor partial = empty(g, {count_gram_partials(parts, m, chunking_of(g))}, ScalarType::Double);
  Tensor out = empty(g, {parts.count, m.rows, m.rows}, acc_type(g));
  const GramArgs args{dtype_of(g), m, parts, static_cast<double*>(partial.mutable_data_ptr()),
                      out.mutable_data_ptr()};
  run(
      g, "gram", [&](const Parallel& p) { cpu::kernels().gram(args, p); },
      FM_CUDA(gram(args, stream)));
  return out;
}

}  // namespace
}  // namespace fastmeta

STABLE_TORCH_LIBRARY_FRAGMENT(fastmeta, m) {
  m.def("gram(Tensor g, int[] bounds) -> Tensor");
}

FM_KERNELS(m) {
  m.impl("gram", TORCH_BOX(&fastmeta::gram));
}
