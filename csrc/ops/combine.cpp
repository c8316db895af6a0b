// The combine ops: schemas, checks, allocation and dispatch.
#include "cpu/kernels.h"
#include "ops/overlap.h"
#include "ops/tensors.h"

namespace fastmeta {
namespace {

// `fresh`: the outputs are newly allocated and cannot overlap.
void fill(const Tensors& out, const Tensors& buffers, const Tensor& coef, const Ints& bounds,
          bool fresh) {
  FM_REQUIRE(buffers.size() == 1 || buffers.size() == 2, "combine: expected one or two buffers.");
  Tensors rows;
  for (const Tensor& g : buffers) {
    rows.push_back(dense_rows(g, "combine"));
    FM_REQUIRE(same_kind(g, buffers[0]) && g.size(0) == buffers[0].size(0) &&
                   g.size(1) == buffers[0].size(1),
               "combine: both buffers need one shape, dtype and device.");
  }
  const int64_t columns = rows[0].size(1), count = static_cast<int64_t>(buffers.size());
  const Segments parts = segments(bounds, columns, "combine");
  FM_REQUIRE(
      coef.dim() == 3 && coef.size(0) == rows[0].size(0) && coef.size(1) == parts.count &&
          coef.size(2) == count && coef.scalar_type() == acc_type(rows[0]) &&
          coef.is_cuda() == rows[0].is_cuda(),
      "combine: coef must have the shape (tasks, segments, buffers) and the accumulation dtype "
      "of the buffers; got " +
          shape_of(coef) + ".");
  std::vector<void*> pointers;
  Ints pieces{0};
  for (const Tensor& t : out) {
    FM_REQUIRE(same_kind(t, rows[0]) && t.is_contiguous(),
               "combine_: outputs must be contiguous and have the buffers' dtype and device.");
    pointers.push_back(t.mutable_data_ptr());
    pieces.push_back(pieces.back() + t.numel());
  }
  const Tensor c = dense(coef);
  if (!fresh) {
    std::vector<Span> targets, sources{span_of(c, -1)};
    for (const Tensor& t : out) targets.push_back(span_of(t, 0));
    for (const Tensor& g : rows)
      for (int64_t t = 0; t < g.size(0); ++t) {
        const char* row = static_cast<const char*>(g.const_data_ptr());
        sources.push_back({row + t * g.stride(0) * element_size(g), columns * element_size(g), -1});
      }
    require_disjoint(targets, sources, "combine_");
  }
  CombineArgs args{dtype_of(rows[0]),
                   {matrix(rows[0]), matrix(rows.back())},
                   count,
                   c.const_data_ptr(),
                   parts,
                   pointers.data(),
                   segments(pieces, columns, "combine_: the outputs' sizes")};
  run(
      rows[0], "combine", [&](const Parallel& p) { cpu::kernels().combine(args, p); },
      FM_CUDA(combine(args, stream)));
}

void combine_(const Tensors& out, const Tensors& buffers, const Tensor& coef, const Ints& bounds) {
  fill(out, buffers, coef, bounds, false);
}

Tensor combine(const Tensors& buffers, const Tensor& coef, const Ints& bounds) {
  FM_REQUIRE(!buffers.empty() && buffers[0].dim() == 2,
             "combine: expected (tasks, parameters) buffers.");
  Tensor out = empty(buffers[0], {buffers[0].size(1)}, buffers[0].scalar_type());
  fill({out}, buffers, coef, bounds, true);
  return out;
}

}  // namespace
}  // namespace fastmeta

STABLE_TORCH_LIBRARY_FRAGMENT(fastmeta, m) {
  m.def("combine(Tensor[] buffers, Tensor coef, int[] bounds) -> Tensor");
  m.def("combine_(Tensor(a!)[] out, Tensor[] buffers, Tensor coef, int[] bounds) -> ()");
}

FM_KERNELS(m) {
  m.impl("combine", TORCH_BOX(&fastmeta::combine));
  m.impl("combine_", TORCH_BOX(&fastmeta::combine_));
}
