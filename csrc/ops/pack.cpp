// The pack ops: schemas, checks and dispatch.
#include "fastmeta/pack.h"

#include "cpu/kernels.h"
#include "ops/overlap.h"
#include "ops/tensors.h"

namespace fastmeta {
namespace {

int64_t total_columns(const Tensors& tensors, int64_t rows, const char* op) {
  FM_REQUIRE(rows > 0 && tensors.size() % rows == 0 && !tensors.empty(),
             std::string(op) + ": " + std::to_string(tensors.size()) +
                 " tensors cannot be divided into " + std::to_string(rows) +
                 " rows. Pass all tensors of each task, task by task.");
  const int64_t each = static_cast<int64_t>(tensors.size()) / rows;
  int64_t columns = 0;
  for (int64_t k = 0; k < static_cast<int64_t>(tensors.size()); ++k) {
    FM_REQUIRE(tensors[k].numel() == tensors[k % each].numel(),
               std::string(op) + ": tensor " + std::to_string(k % each) + " of task " +
                   std::to_string(k / each) + " differs in size from that of task 0.");
    if (k < each) columns += tensors[k].numel();
  }
  return columns;
}

// Copies between tensors (task by task) and the rows of flat. `fresh`: the targets are newly
// allocated and cannot overlap.
void copy_rows(const Tensors& tensors, const Tensor& flat, bool into_flat, bool fresh,
               const char* op) {
  const int64_t size = element_size(flat);
  const int64_t each = static_cast<int64_t>(tensors.size()) / flat.size(0);
  std::vector<Copy> copies;
  char* cursor = nullptr;
  for (int64_t k = 0; k < static_cast<int64_t>(tensors.size()); ++k) {
    if (k % each == 0)
      cursor = static_cast<char*>(flat.mutable_data_ptr()) + k / each * flat.stride(0) * size;
    const int64_t bytes = tensors[k].numel() * size;
    void* own = tensors[k].mutable_data_ptr();
    copies.push_back({into_flat ? own : cursor, into_flat ? cursor : own, bytes});
    cursor += bytes;
  }
  const int64_t count = static_cast<int64_t>(copies.size());
  if (!fresh) {
    std::vector<Span> targets, sources;
    for (int64_t k = 0; k < count; ++k) {
      targets.push_back({static_cast<const char*>(copies[k].target), copies[k].bytes, k});
      sources.push_back({static_cast<const char*>(copies[k].source), copies[k].bytes, k});
    }
    require_disjoint(targets, sources, op);
  }
  run(
      flat, op, [&](const Parallel& p) { cpu::pack(copies.data(), count, p); },
      FM_CUDA(pack(copies.data(), count, stream)));
}

void fill(const Tensor& flat, const Tensors& tensors, bool fresh) {
  FM_REQUIRE(flat.dim() == 2 && (flat.size(1) <= 1 || flat.stride(1) == 1),
             "pack_: the buffer must be a (tasks, parameters) matrix with dense rows, got shape " +
                 shape_of(flat) + ".");
  FM_REQUIRE(flat.size(0) <= 1 || flat.stride(0) >= flat.size(1),
             "pack_: the rows of the buffer " + shape_of(flat) + " share memory. Clone it first.");
  FM_REQUIRE(total_columns(tensors, flat.size(0), "pack_") == flat.size(1),
             "pack_: the tensors of one task must have as many elements in total as a row of " +
                 shape_of(flat) + ".");
  Tensors parts;
  for (const Tensor& t : tensors) {
    FM_REQUIRE(same_kind(t, flat),
               "pack: all tensors must have one dtype and one device. Group the "
               "parameters by both.");
    parts.push_back(dense(t));
  }
  copy_rows(parts, flat, true, fresh, fresh ? "pack" : "pack_");
}

void pack_(const Tensor& flat, const Tensors& tensors) {
  fill(flat, tensors, false);
}

Tensor pack(const Tensors& tensors, int64_t rows) {
  const int64_t columns = total_columns(tensors, rows, "pack");
  Tensor flat = empty(tensors[0], {rows, columns}, tensors[0].scalar_type());
  fill(flat, tensors, true);
  return flat;
}

void unpack_(const Tensors& tensors, const Tensor& flat) {
  const Tensor source = dense_rows(flat, "unpack_");
  FM_REQUIRE(total_columns(tensors, flat.size(0), "unpack_") == flat.size(1),
             "unpack_: the tensors of one task must have as many elements in total as a row of " +
                 shape_of(flat) + ".");
  for (const Tensor& t : tensors)
    FM_REQUIRE(same_kind(t, flat) && t.is_contiguous(),
               "unpack_: targets must be contiguous and have the buffer's dtype and device.");
  copy_rows(tensors, source, false, false, "unpack_");
}

}  // namespace
}  // namespace fastmeta

STABLE_TORCH_LIBRARY_FRAGMENT(fastmeta, m) {
  m.def("pack(Tensor[] tensors, int rows) -> Tensor");
  m.def("pack_(Tensor(a!) flat, Tensor[] tensors) -> ()");
  m.def("unpack_(Tensor(a!)[] tensors, Tensor flat) -> ()");
}

FM_KERNELS(m) {
  m.impl("pack", TORCH_BOX(&fastmeta::pack));
  m.impl("pack_", TORCH_BOX(&fastmeta::pack_));
  m.impl("unpack_", TORCH_BOX(&fastmeta::unpack_));
}
