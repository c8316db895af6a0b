// The similarity ops: schemas, checks, allocation and dispatch.
#include "cpu/kernels.h"
#include "ops/tensors.h"

namespace fastmeta {
namespace {

Tensor row_similarity(const Tensor& a, const Tensor& b, const Ints& bounds) {
  const Tensor x = dense_rows(a, "row_similarity"), y = dense_rows(b, "row_similarity");
  FM_REQUIRE(same_kind(a, b) && a.size(0) == b.size(0) && a.size(1) == b.size(1),
             "row_similarity: both buffers need one shape, dtype and device; got " + shape_of(a) +
                 " and " + shape_of(b) + ".");
  constexpr int64_t kMaxTasks = 65535;  // CUDA's grid.y
  FM_REQUIRE(a.size(0) <= kMaxTasks, "row_similarity: expected at most 65535 tasks, got " +
                                         std::to_string(a.size(0)) + ".");
  const Segments parts = segments(bounds, a.size(1), "row_similarity");
  Tensor partial =
      empty(a, {count_row_partials(parts, matrix(x), chunking_of(a))}, ScalarType::Double);
  Tensor out = empty(a, {a.size(0), parts.count, 3}, acc_type(a));
  const RowSimilarityArgs args{dtype_of(a),
                               matrix(x),
                               matrix(y),
                               parts,
                               static_cast<double*>(partial.mutable_data_ptr()),
                               out.mutable_data_ptr()};
  run(
      a, "row_similarity", [&](const Parallel& p) { cpu::kernels().row_similarity(args, p); },
      FM_CUDA(row_similarity(args, stream)));
  return out;
}

Tensor mean_similarity(const Tensor& g) {
  const Tensor rows = dense_rows(g, "mean_similarity");
  Tensor partial =
      empty(g, {count_mean_partials(matrix(rows), chunking_of(g))}, ScalarType::Double);
  Tensor out = empty(g, {g.size(0), 2}, acc_type(g));
  const MeanSimilarityArgs args{dtype_of(g), matrix(rows),
                                static_cast<double*>(partial.mutable_data_ptr()),
                                out.mutable_data_ptr()};
  run(
      g, "mean_similarity", [&](const Parallel& p) { cpu::kernels().mean_similarity(args, p); },
      FM_CUDA(mean_similarity(args, stream)));
  return out;
}

}  // namespace
}  // namespace fastmeta

STABLE_TORCH_LIBRARY_FRAGMENT(fastmeta, m) {
  m.def("row_similarity(Tensor a, Tensor b, int[] bounds) -> Tensor");
  m.def("mean_similarity(Tensor g) -> Tensor");
}

FM_KERNELS(m) {
  m.impl("row_similarity", TORCH_BOX(&fastmeta::row_similarity));
  m.impl("mean_similarity", TORCH_BOX(&fastmeta::mean_similarity));
}
