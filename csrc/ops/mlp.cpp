// The mlp_step op: schema, checks and allocation.
#include "cpu/kernels.h"
#include "fastmeta/mlp_plan.h"
#include "ops/targets.h"

namespace fastmeta {

#if defined(FM_WITH_CUDA)
namespace cuda {

// Checks the limits and allocates scratch for the blocks.
static int mlp_step(const MlpArgs& args, const Tensor& like, void* stream) {
  FM_REQUIRE(args.count <= kMaxMlpLayers && mlp_products(args) <= kMaxMlpProducts &&
                 mlp_masks(args) <= kMaxMlpMasks,
             "mlp_step: on CUDA at most " + std::to_string(kMaxMlpLayers) + " layers, " +
                 std::to_string(kMaxMlpProducts) +
                 " multiplications of one forward pass over a task's examples, and masks for " +
                 std::to_string(kMaxMlpMasks) + " inner steps; got " + std::to_string(args.count) +
                 ", " + std::to_string(mlp_products(args)) + " and " +
                 std::to_string(mlp_masks(args)) + ". Move parameters and tasks with .cpu().");
  const MlpPlan plan = plan_mlp(args, mlp_shared_capacity(args.dtype));
  const Tensor scratch = empty(like, {plan.blocks * plan.scratch}, like.scalar_type());
  return mlp_step(args, plan, scratch.mutable_data_ptr(), stream);
}

}  // namespace cuda
#endif

namespace {

// Weights (out, in), each followed by its bias (out) if it has one.
std::vector<MlpLayer> read_layers(const Tensors& params, const Ints& activations) {
  std::vector<MlpLayer> layers;
  for (size_t k = 0; k < params.size(); ++k) {
    const Tensor& p = params[k];
    const std::string name = "mlp_step: parameter " + std::to_string(k);
    FM_REQUIRE(same_kind(p, params[0]) && p.is_contiguous(),
               name + ": all parameters must be contiguous and have one dtype and device.");
    if (p.dim() == 1 && !layers.empty() && !layers.back().bias) {
      FM_REQUIRE(p.size(0) == layers.back().out,
                 name + ": the bias " + shape_of(p) + " must have one value for each of the " +
                     std::to_string(layers.back().out) + " outputs of its layer.");
      layers.back().bias = p.const_data_ptr();
      continue;
    }
    FM_REQUIRE(p.dim() == 2 && p.numel() > 0,
               name +
                   ": expected weights (out, in), each followed by its bias (out) or by the "
                   "next weight; got shape " +
                   shape_of(p) + ".");
    FM_REQUIRE(layers.empty() || p.size(1) == layers.back().out,
               name + ": the weight " + shape_of(p) + " must take the " +
                   std::to_string(layers.empty() ? 0 : layers.back().out) +
                   " outputs of the layer before.");
    layers.push_back({p.size(1), p.size(0), p.const_data_ptr(), nullptr, Activation::relu});
  }
  FM_REQUIRE(!layers.empty(), "mlp_step: expected at least one layer, got no parameter.");
  FM_REQUIRE(activations.size() + 1 == layers.size(),
             "mlp_step: expected an activation between each two of the " +
                 std::to_string(layers.size()) + " layers, got " +
                 std::to_string(activations.size()) + ".");
  for (size_t l = 0; l < activations.size(); ++l) {
    FM_REQUIRE(activations[l] >= 0 && activations[l] < kMlpActivations,
               "mlp_step: unknown activation.");
    layers[l].activation = static_cast<Activation>(activations[l]);
  }
  return layers;
}

// Checks one split; x and y are made contiguous in place.
MlpExamples read_examples(Tensor& x, Tensor& y, const Tensor& like, int64_t tasks, int64_t in,
                          int64_t out, Loss loss, const std::string& split) {
  const std::string name = "mlp_step: " + split;
  FM_REQUIRE(
      same_kind(x, like) && x.dim() == 3 && x.size(0) == tasks && x.size(1) > 0 && x.size(2) == in,
      name + "_x: expected (tasks, examples, " + std::to_string(in) +
          ") numbers of the parameters' dtype, at least one example; got shape " + shape_of(x) +
          ".");
  const int64_t n = x.size(1);
  if (loss == Loss::cross_entropy) {
    FM_REQUIRE(y.scalar_type() == ScalarType::Long && same_device(y, like) && y.dim() == 2 &&
                   y.size(0) == tasks && y.size(1) == n,
               name +
                   "_y: expected (tasks, examples) int64 class numbers on the parameters' device, "
                   "got shape " +
                   shape_of(y) + ".");
  } else {
    FM_REQUIRE(same_kind(y, like) && y.dim() == 3 && y.size(0) == tasks && y.size(1) == n &&
                   y.size(2) == out,
               name + "_y: expected (tasks, examples, " + std::to_string(out) +
                   ") numbers of the parameters' dtype, got shape " + shape_of(y) + ".");
  }
  x = dense(x);
  y = dense(y);
  if (loss == Loss::cross_entropy && !y.is_cuda()) require_classes(y, out, name + "_y");
  return {x.const_data_ptr(), y.const_data_ptr(), n};
}

Tensors mlp_step(const Tensors& params, Tensor support_x, Tensor support_y, Tensor query_x,
                 Tensor query_y, const Ints& activations, int64_t loss, double lr, int64_t steps,
                 const Ints& differentiated, double lam_d, double lam_c, double lam_2,
                 bool record_inner) {
  const std::vector<MlpLayer> layers = read_layers(params, activations);
  const Tensor& like = params[0];
  const ScalarType type = like.scalar_type();
  FM_REQUIRE(type == ScalarType::Float || type == ScalarType::Double,
             "mlp_step: parameters must be float32 or float64.");
  FM_REQUIRE(loss >= 0 && loss < kLosses, "mlp_step: unknown loss.");
  FM_REQUIRE(steps >= 0, "mlp_step: the number of inner steps must not be negative.");
  FM_REQUIRE(!record_inner || steps > 0,
             "mlp_step: the mean inner gradient needs at least one inner step.");
  FM_REQUIRE(support_x.dim() > 0, "mlp_step: support_x: expected (tasks, examples, inputs).");
  const size_t count = layers.size();
  FM_REQUIRE(!differentiated.empty() && differentiated.size() % count == 0,
             "mlp_step: expected masks of " + std::to_string(count) +
                 " layers, at least one; got " + std::to_string(differentiated.size()) +
                 " values.");
  const auto kind = static_cast<Loss>(loss);
  const int64_t tasks = support_x.size(0), in = layers.front().in, out = layers.back().out;
  const MlpExamples support =
      read_examples(support_x, support_y, like, tasks, in, out, kind, "support");
  const MlpExamples query = read_examples(query_x, query_y, like, tasks, in, out, kind, "query");
  int64_t size = 0;
  for (const Tensor& p : params) size += p.numel();
  Tensors results{empty(like, {tasks, size}, type),
                  empty(like, {record_inner ? tasks : 0, size}, type), empty(like, {tasks}, type),
                  empty(like, {tasks}, type), empty(like, {tasks, query.n, out}, type)};
  const MlpArgs args{dtype_of(like),
                     layers.data(),
                     static_cast<int64_t>(count),
                     kind,
                     tasks,
                     support,
                     query,
                     lr,
                     steps,
                     differentiated.data(),
                     static_cast<int64_t>(differentiated.size() / count),
                     lam_d,
                     lam_c,
                     lam_2,
                     results[0].mutable_data_ptr(),
                     record_inner ? results[1].mutable_data_ptr() : nullptr,
                     results[2].mutable_data_ptr(),
                     results[3].mutable_data_ptr(),
                     results[4].mutable_data_ptr()};
  run(
      like, "mlp_step", [&](const Parallel& p) { cpu::kernels().mlp_step(args, p); },
      FM_CUDA(mlp_step(args, like, stream)));
  return results;
}

// Limits of the CUDA kernel: layers, multiplications in one forward pass over a task, and masks.
Ints mlp_limits() {
  return {kMaxMlpLayers, kMaxMlpProducts, kMaxMlpMasks};
}

}  // namespace
}  // namespace fastmeta

STABLE_TORCH_LIBRARY_FRAGMENT(fastmeta, m) {
  m.def(
      "mlp_step(Tensor[] params, Tensor support_x, Tensor support_y, Tensor query_x, Tensor "
      "query_y, int[] activations, int loss, float lr, int steps, int[] differentiated, float "
      "lam_d, float lam_c, float lam_2, bool record_inner) -> Tensor[]");
  m.def("mlp_limits() -> int[]");
}

FM_KERNELS(m) {
  m.impl("mlp_step", TORCH_BOX(&fastmeta::mlp_step));
}

STABLE_TORCH_LIBRARY_IMPL(fastmeta, CompositeExplicitAutograd, m) {
  m.impl("mlp_limits", TORCH_BOX(&fastmeta::mlp_limits));
}
