// The ops as torch sees them: schemas, checks, allocation and dispatch. Gradients live in Python
// (fastmeta/ops): an op registered with autograd here would break torch.func.
#include <Python.h>

#include "cpu/kernels.h"
#include "fastmeta/pack.h"
#include "fastmeta/weights.h"
#include "tensors.h"

namespace fastmeta {
namespace {

int64_t total_columns(const Tensors& tensors, int64_t rows, const char* op) {
  FM_REQUIRE(rows > 0 && tensors.size() % rows == 0 && !tensors.empty(),
             std::string(op) + ": " + std::to_string(tensors.size()) + " tensors do not make " +
                 std::to_string(rows) + " rows. Pass the tensors of every task, task after task.");
  const int64_t each = static_cast<int64_t>(tensors.size()) / rows;
  int64_t columns = 0;
  for (int64_t k = 0; k < static_cast<int64_t>(tensors.size()); ++k) {
    FM_REQUIRE(tensors[k].numel() == tensors[k % each].numel(),
               std::string(op) + ": tensor " + std::to_string(k % each) + " of task " +
                   std::to_string(k / each) + " has another size than in task 0.");
    if (k < each) columns += tensors[k].numel();
  }
  return columns;
}

// Copies between tensors (task after task) and the rows of flat.
void copy_rows(const Tensors& tensors, const Tensor& flat, bool into_flat, const char* op) {
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
  run(
      flat, op, [&](const Parallel& p) { cpu::pack(copies.data(), count, p); },
      FM_CUDA(pack(copies.data(), count, stream)));
}

void pack_(const Tensor& flat, const Tensors& tensors) {
  FM_REQUIRE(flat.dim() == 2 && (flat.size(1) <= 1 || flat.stride(1) == 1),
             "pack_: the buffer must be a (tasks, parameters) matrix with dense rows, got shape " +
                 shape_of(flat) + ".");
  FM_REQUIRE(total_columns(tensors, flat.size(0), "pack_") == flat.size(1),
             "pack_: the tensors of one task must hold as many elements as a row of " +
                 shape_of(flat) + ".");
  Tensors parts;
  for (const Tensor& t : tensors) {
    FM_REQUIRE(same_kind(t, flat),
               "pack: all tensors must have one dtype and one device. Group the "
               "parameters by both.");
    parts.push_back(dense(t));
  }
  copy_rows(parts, flat, true, "pack");
}

Tensor pack(const Tensors& tensors, int64_t rows) {
  const int64_t columns = total_columns(tensors, rows, "pack");
  Tensor flat = empty(tensors[0], {rows, columns}, tensors[0].scalar_type());
  pack_(flat, tensors);
  return flat;
}

void unpack_(const Tensors& tensors, const Tensor& flat) {
  const Tensor source = dense_rows(flat, "unpack_");
  FM_REQUIRE(total_columns(tensors, flat.size(0), "unpack_") == flat.size(1),
             "unpack_: the tensors of one task must hold as many elements as a row of " +
                 shape_of(flat) + ".");
  for (const Tensor& t : tensors)
    FM_REQUIRE(same_kind(t, flat) && t.is_contiguous(),
               "unpack_: targets must be contiguous and have the buffer's dtype and device.");
  copy_rows(tensors, source, false, "unpack_");
}

Cut cut_of(const Tensor& g) {
  return g.is_cuda() ? kCudaCut : kCpuCut;
}

Tensor gram(const Tensor& g, const Ints& bounds) {
  const Tensor rows = dense_rows(g, "gram");
  const Segments parts = segments(bounds, g.size(1), "gram");
  const int64_t tasks = g.size(0);
  Tensor partial =
      empty(g, {count_chunks(parts, g.size(1), cut_of(g)), tasks, tasks}, ScalarType::Double);
  Tensor out = empty(g, {parts.count, tasks, tasks}, acc_type(g));
  const GramArgs args{dtype_of(g), matrix(rows), parts,
                      static_cast<double*>(partial.mutable_data_ptr()), out.mutable_data_ptr()};
  run(
      g, "gram", [&](const Parallel& p) { cpu::kernels().gram(args, p); },
      FM_CUDA(gram(args, stream)));
  return out;
}

Tensor row_similarity(const Tensor& a, const Tensor& b, const Ints& bounds) {
  const Tensor x = dense_rows(a, "row_similarity"), y = dense_rows(b, "row_similarity");
  FM_REQUIRE(same_kind(a, b) && a.size(0) == b.size(0) && a.size(1) == b.size(1),
             "row_similarity: both buffers need one shape, dtype and device; got " + shape_of(a) +
                 " and " + shape_of(b) + ".");
  constexpr int64_t kMostTasks = 65535;  // CUDA's grid.y
  FM_REQUIRE(a.size(0) <= kMostTasks, "row_similarity: at most 65535 tasks at a time.");
  const Segments parts = segments(bounds, a.size(1), "row_similarity");
  Tensor partial =
      empty(a, {count_chunks(parts, a.size(1), cut_of(a)), a.size(0), 3}, ScalarType::Double);
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
  const int64_t bounds[2] = {0, g.size(1)};
  Tensor partial =
      empty(g, {count_chunks({bounds, 1}, g.size(1), cut_of(g)), g.size(0), 2}, ScalarType::Double);
  Tensor out = empty(g, {g.size(0), 2}, acc_type(g));
  const MeanSimilarityArgs args{dtype_of(g), matrix(rows),
                                static_cast<double*>(partial.mutable_data_ptr()),
                                out.mutable_data_ptr()};
  run(
      g, "mean_similarity", [&](const Parallel& p) { cpu::kernels().mean_similarity(args, p); },
      FM_CUDA(mean_similarity(args, stream)));
  return out;
}

Tensor gsl_coefficients(const Tensor& stats, const Tensor& weight, const Tensor& rate, double lam_c,
                        double lam_2, int64_t magnitude, double ratio, double eps) {
  FM_REQUIRE(
      stats.dim() == 3 && stats.size(2) == 3 && acc_type(stats) == stats.scalar_type(),
      "gsl_coefficients: stats must be the float32 or float64 (tasks, segments, 3) result of "
      "row_similarity, got shape " +
          shape_of(stats) + ".");
  FM_REQUIRE(
      same_kind(stats, weight) && same_kind(stats, rate) && weight.dim() == 1 &&
          weight.size(0) == stats.size(0) && rate.numel() == 1,
      "gsl_coefficients: weight must have one value a task and rate one value, of the dtype and "
      "device of stats.");
  FM_REQUIRE(magnitude >= 0 && magnitude <= 3, "gsl_coefficients: unknown magnitude rule.");
  const Tensor s = dense(stats), w = dense(weight);
  Tensor out = empty(stats, {stats.size(0), stats.size(1), 2}, stats.scalar_type());
  const GslArgs args{dtype_of(stats),
                     s.const_data_ptr(),
                     w.const_data_ptr(),
                     rate.const_data_ptr(),
                     stats.size(0),
                     stats.size(1),
                     {lam_c, lam_2, static_cast<Magnitude>(magnitude), ratio, eps},
                     out.mutable_data_ptr()};
  run(
      stats, "gsl_coefficients", [&](const Parallel&) { cpu::gsl_coefficients(args); },
      FM_CUDA(gsl_coefficients(args, stream)));
  return out;
}

Tensor task_weights(const Tensor& stats, int64_t rule, double lam_c, double lam_2, double tau) {
  FM_REQUIRE(stats.dim() == 2 && stats.size(1) == 2 && acc_type(stats) == stats.scalar_type(),
             "task_weights: stats must be the float32 or float64 (tasks, 2) result of "
             "mean_similarity, got shape " +
                 shape_of(stats) + ".");
  FM_REQUIRE(rule >= 0 && rule <= 2, "task_weights: unknown rule.");
  const Tensor s = dense(stats);
  Tensor out = empty(stats, {stats.size(0)}, stats.scalar_type());
  const TaskWeightArgs args{dtype_of(stats),
                            s.const_data_ptr(),
                            stats.size(0),
                            static_cast<TaskWeight>(rule),
                            lam_c,
                            lam_2,
                            tau,
                            out.mutable_data_ptr()};
  run(
      stats, "task_weights", [&](const Parallel&) { cpu::task_weights(args); },
      FM_CUDA(task_weights(args, stream)));
  return out;
}

void combine_(const Tensors& out, const Tensors& buffers, const Tensor& coef, const Ints& bounds) {
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

Tensor combine(const Tensors& buffers, const Tensor& coef, const Ints& bounds) {
  FM_REQUIRE(!buffers.empty() && buffers[0].dim() == 2,
             "combine: expected (tasks, parameters) buffers.");
  Tensor out = empty(buffers[0], {buffers[0].size(1)}, buffers[0].scalar_type());
  combine_({out}, buffers, coef, bounds);
  return out;
}

// out[k] = theta[k] - alpha[k] * grad[k]; alpha[k] holds one value or as many as theta[k].
void step_items(const Tensors& out, const Tensors& theta, const Tensors& grad, const Tensors& alpha,
                const Ints& frozen) {
  const size_t count = theta.size();
  FM_REQUIRE(grad.size() == count && alpha.size() == count && frozen.size() == count && count > 0,
             "inner_step: theta, grad, alpha and frozen must be equally long and not empty; got " +
                 std::to_string(count) + ", " + std::to_string(grad.size()) + ", " +
                 std::to_string(alpha.size()) + " and " + std::to_string(frozen.size()) + ".");
  std::vector<StepItem> items;
  Tensors keep;  // contiguous copies live until the launch
  for (size_t k = 0; k < count; ++k) {
    const std::string name = "inner_step: tensor " + std::to_string(k);
    FM_REQUIRE(same_kind(theta[k], theta[0]) && same_kind(grad[k], theta[0]),
               name + ": all parameters and gradients must have one dtype and one device.");
    FM_REQUIRE(grad[k].numel() == theta[k].numel(), name + ": the gradient " + shape_of(grad[k]) +
                                                        " must have the parameter's shape " +
                                                        shape_of(theta[k]) + ".");
    FM_REQUIRE(
        alpha[k].scalar_type() == acc_type(theta[0]) && alpha[k].is_cuda() == theta[0].is_cuda() &&
            (alpha[k].numel() == 1 || alpha[k].numel() == theta[k].numel()),
        name +
            ": alpha must hold one value, or one for each element, in the accumulation dtype "
            "and on the parameter's device.");
    for (const Tensor* t : {&theta[k], &grad[k], &alpha[k]}) keep.push_back(dense(*t));
    const size_t last = keep.size();
    items.push_back({keep[last - 3].const_data_ptr(), keep[last - 2].const_data_ptr(),
                     keep[last - 1].const_data_ptr(), out[k].mutable_data_ptr(), theta[k].numel(),
                     alpha[k].numel() != 1, frozen[k] != 0});
  }
  const StepArgs args{dtype_of(theta[0]), items.data(), static_cast<int64_t>(items.size())};
  run(
      theta[0], "inner_step", [&](const Parallel& p) { cpu::kernels().inner_step(args, p); },
      FM_CUDA(inner_step(args, stream)));
}

Tensors inner_step(const Tensors& theta, const Tensors& grad, const Tensors& alpha,
                   const Ints& frozen) {
  Tensors out;
  for (const Tensor& t : theta) {
    Ints shape;
    for (int64_t d = 0; d < t.dim(); ++d) shape.push_back(t.size(d));
    out.push_back(empty(t, shape, t.scalar_type()));
  }
  step_items(out, theta, grad, alpha, frozen);
  return out;
}

void inner_step_(const Tensors& theta, const Tensors& grad, const Tensors& alpha,
                 const Ints& frozen) {
  for (const Tensor& t : theta)
    FM_REQUIRE(t.is_contiguous(), "inner_step_: parameters updated in place must be contiguous.");
  step_items(theta, theta, grad, alpha, frozen);
}

void require_rows(const Tensors& same, const Tensor& eps, const char* op) {
  for (const Tensor& t : same)
    FM_REQUIRE(t.dim() == 2 && same_kind(t, same[0]) && t.size(0) == same[0].size(0) &&
                   t.size(1) == same[0].size(1),
               std::string(op) +
                   ": expected (tasks, parameters) buffers of one shape, dtype and "
                   "device; got " +
                   shape_of(same[0]) + " and " + shape_of(t) + ".");
  FM_REQUIRE(eps.numel() == same[0].size(0) && eps.scalar_type() == acc_type(same[0]) &&
                 eps.is_cuda() == same[0].is_cuda() &&
                 eps.get_device_index() == same[0].get_device_index(),
             std::string(op) + ": eps must hold one value a task in the accumulation dtype.");
}

Tensors hvp_perturb(const Tensor& theta, const Tensor& v, const Tensor& eps) {
  require_rows({theta, v}, eps, "hvp_perturb");
  const Tensor centre = dense(theta), move = dense(v), radius = dense(eps);
  const Ints shape{theta.size(0), theta.size(1)};
  Tensors out{empty(theta, shape, theta.scalar_type()), empty(theta, shape, theta.scalar_type())};
  const PerturbArgs args{dtype_of(theta),
                         shape[0],
                         shape[1],
                         centre.const_data_ptr(),
                         move.const_data_ptr(),
                         radius.const_data_ptr(),
                         out[0].mutable_data_ptr(),
                         out[1].mutable_data_ptr()};
  run(
      theta, "hvp_perturb", [&](const Parallel& p) { cpu::kernels().hvp_perturb(args, p); },
      FM_CUDA(hvp_perturb(args, stream)));
  return out;
}

Tensor hvp_difference(const Tensor& v, const Tensor& g_plus, const Tensor& g_minus,
                      const Tensor& eps, const Tensor& alpha) {
  require_rows({v, g_plus, g_minus}, eps, "hvp_difference");
  FM_REQUIRE(same_kind(alpha, eps) && (alpha.numel() == 1 || alpha.numel() == v.size(1)),
             "hvp_difference: alpha must hold one value, or one for each column, of eps' dtype.");
  const Tensor parts[] = {dense(v), dense(g_plus), dense(g_minus), dense(eps), dense(alpha)};
  Tensor out = empty(v, {v.size(0), v.size(1)}, v.scalar_type());
  const DifferenceArgs args{dtype_of(v),
                            v.size(0),
                            v.size(1),
                            parts[0].const_data_ptr(),
                            parts[1].const_data_ptr(),
                            parts[2].const_data_ptr(),
                            parts[3].const_data_ptr(),
                            parts[4].const_data_ptr(),
                            alpha.numel() != 1,
                            out.mutable_data_ptr()};
  run(
      v, "hvp_difference", [&](const Parallel& p) { cpu::kernels().hvp_difference(args, p); },
      FM_CUDA(hvp_difference(args, stream)));
  return out;
}

std::string build_info() {
#if defined(FM_WITH_CUDA)
  const std::string cuda = FM_CUDA_VERSION ";" FM_CUDA_ARCHITECTURES;
#else
  const std::string cuda = ";";
#endif
  return std::string(cpu::kernels().isa) + ";" + FM_COMPILER + ";" + FM_TORCH_VERSION + ";" + cuda;
}

void register_kernels(torch::stable::detail::StableLibrary& m) {
  m.impl("pack", TORCH_BOX(&pack));
  m.impl("pack_", TORCH_BOX(&pack_));
  m.impl("unpack_", TORCH_BOX(&unpack_));
  m.impl("gram", TORCH_BOX(&gram));
  m.impl("row_similarity", TORCH_BOX(&row_similarity));
  m.impl("mean_similarity", TORCH_BOX(&mean_similarity));
  m.impl("gsl_coefficients", TORCH_BOX(&gsl_coefficients));
  m.impl("task_weights", TORCH_BOX(&task_weights));
  m.impl("combine", TORCH_BOX(&combine));
  m.impl("combine_", TORCH_BOX(&combine_));
  m.impl("inner_step", TORCH_BOX(&inner_step));
  m.impl("inner_step_", TORCH_BOX(&inner_step_));
  m.impl("hvp_perturb", TORCH_BOX(&hvp_perturb));
  m.impl("hvp_difference", TORCH_BOX(&hvp_difference));
}

}  // namespace
}  // namespace fastmeta

STABLE_TORCH_LIBRARY(fastmeta, m) {
  m.def("pack(Tensor[] tensors, int rows) -> Tensor");
  m.def("pack_(Tensor(a!) flat, Tensor[] tensors) -> ()");
  m.def("unpack_(Tensor(a!)[] tensors, Tensor flat) -> ()");
  m.def("gram(Tensor g, int[] bounds) -> Tensor");
  m.def("row_similarity(Tensor a, Tensor b, int[] bounds) -> Tensor");
  m.def("mean_similarity(Tensor g) -> Tensor");
  m.def(
      "gsl_coefficients(Tensor stats, Tensor weight, Tensor rate, float lam_c, float lam_2, "
      "int magnitude, float ratio, float eps) -> Tensor");
  m.def("task_weights(Tensor stats, int rule, float lam_c, float lam_2, float tau) -> Tensor");
  m.def("combine(Tensor[] buffers, Tensor coef, int[] bounds) -> Tensor");
  m.def("combine_(Tensor(a!)[] out, Tensor[] buffers, Tensor coef, int[] bounds) -> ()");
  m.def("inner_step(Tensor[] theta, Tensor[] grad, Tensor[] alpha, int[] frozen) -> Tensor[]");
  m.def("inner_step_(Tensor(a!)[] theta, Tensor[] grad, Tensor[] alpha, int[] frozen) -> ()");
  m.def("hvp_perturb(Tensor theta, Tensor v, Tensor eps) -> Tensor[]");
  m.def(
      "hvp_difference(Tensor v, Tensor g_plus, Tensor g_minus, Tensor eps, Tensor alpha) "
      "-> Tensor");
  m.def("build_info() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(fastmeta, CPU, m) {
  fastmeta::register_kernels(m);
}
#if defined(FM_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(fastmeta, CUDA, m) {
  fastmeta::register_kernels(m);
}
#endif
STABLE_TORCH_LIBRARY_IMPL(fastmeta, CompositeExplicitAutograd, m) {
  m.impl("build_info", TORCH_BOX(&fastmeta::build_info));
}

// Importing the module loads the library, which registers the ops above.
PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
