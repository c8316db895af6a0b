// The head_similarity op: schema, checks and allocation.
#include "cpu/kernels.h"
#include "fastmeta/head_similarity_plan.h"
#include "ops/targets.h"

namespace fastmeta {

#if defined(FM_WITH_CUDA)
namespace cuda {

// Checks the limit and allocates scratch for the blocks.
static int head_similarity(const HeadSimilarityArgs& args, const Tensor& like, void* stream) {
  FM_REQUIRE(head_products(args) <= kMaxHeadProducts,
             "head_similarity: on CUDA at most " + std::to_string(kMaxHeadProducts) +
                 " examples times classes times features of a task, got " +
                 std::to_string(head_products(args)) +
                 ". Use fastmeta.ops.head_similarity, which then takes matrix products.");
  const HeadPlan plan = plan_head(args, kHeadSharedBytes);
  const Tensor scratch = empty(like, {plan.blocks * plan.scratch}, acc_type(like));
  return head_similarity(args, plan, scratch.mutable_data_ptr(), stream);
}

}  // namespace cuda
#endif

namespace {

void require(const Tensor& t, const Tensor& like, std::initializer_list<int64_t> shape,
             const char* name, const char* expected) {
  FM_REQUIRE(same_kind(t, like) && has_shape(t, shape),
             std::string("head_similarity: ") + name + ": expected " + expected +
                 " of the dtype and on the device of the features " + shape_of(like) +
                 "; got shape " + shape_of(t) + ".");
}

void require_targets(const Tensor& targets, const Tensor& features, int64_t classes) {
  FM_REQUIRE(targets.scalar_type() == ScalarType::Long && same_device(targets, features) &&
                 targets.dim() == 2 && targets.size(0) == features.size(0) &&
                 targets.size(1) == features.size(1),
             "head_similarity: targets: expected (tasks, examples) int64 class numbers on the "
             "device of the features " +
                 shape_of(features) + ", got shape " + shape_of(targets) + ".");
  if (!targets.is_cuda()) require_classes(targets, classes, "head_similarity: targets");
}

Tensors head_similarity(Tensor features, Tensor logits, Tensor targets, Tensor weight,
                        Tensor query_weight, std::optional<Tensor> query_bias, int64_t loss,
                        double inner_product, double cosine, double l2) {
  FM_REQUIRE(loss >= 0 && loss < kLosses, "head_similarity: unknown loss.");
  FM_REQUIRE(features.dim() == 3 && weight.dim() == 3 && weight.size(1) > 0 && features.size(2) > 0,
             "head_similarity: expected features (tasks, examples, width) and a weight (tasks, "
             "classes, width) of at least one class and feature; got shapes " +
                 shape_of(features) + " and " + shape_of(weight) + ".");
  const auto kind = static_cast<Loss>(loss);
  const int64_t tasks = features.size(0), n = features.size(1), width = features.size(2);
  const int64_t classes = weight.size(1);
  require(logits, features, {tasks, n, classes}, "logits", "(tasks, examples, classes)");
  require(weight, features, {tasks, classes, width}, "weight", "(tasks, classes, width)");
  require(query_weight, features, {tasks, classes, width}, "query_weight",
          "(tasks, classes, width)");
  if (query_bias)
    require(*query_bias, features, {tasks, classes}, "query_bias", "(tasks, classes)");
  features = dense(features);
  logits = dense(logits);
  weight = dense(weight);
  query_weight = dense(query_weight);
  if (query_bias) query_bias = dense(*query_bias);
  if (kind == Loss::mse)
    require(targets, features, {tasks, n, classes}, "targets", "(tasks, examples, classes)");
  targets = dense(targets);
  if (kind == Loss::cross_entropy) require_targets(targets, features, classes);
  const ScalarType type = features.scalar_type();
  Tensors out{empty(features, {tasks, classes, width}, type),
              empty(features, {tasks, 3}, acc_type(features)),
              empty(features, {tasks, n, width}, type),
              empty(features, {tasks, classes, width}, type)};
  if (query_bias)
    for (int k = 0; k < 2; ++k) out.push_back(empty(features, {tasks, classes}, type));
  const HeadSimilarityArgs args{dtype_of(features),
                                kind,
                                tasks,
                                n,
                                classes,
                                width,
                                features.const_data_ptr(),
                                logits.const_data_ptr(),
                                targets.const_data_ptr(),
                                weight.const_data_ptr(),
                                query_weight.const_data_ptr(),
                                query_bias ? query_bias->const_data_ptr() : nullptr,
                                inner_product,
                                cosine,
                                l2,
                                out[0].mutable_data_ptr(),
                                query_bias ? out[4].mutable_data_ptr() : nullptr,
                                out[1].mutable_data_ptr(),
                                out[2].mutable_data_ptr(),
                                out[3].mutable_data_ptr(),
                                query_bias ? out[5].mutable_data_ptr() : nullptr};
  run(
      features, "head_similarity",
      [&](const Parallel& p) { cpu::kernels().head_similarity(args, p); },
      FM_CUDA(head_similarity(args, features, stream)));
  return out;
}

// The limit of the CUDA kernel: examples times classes times features of a task.
int64_t head_limit() {
  return kMaxHeadProducts;
}

}  // namespace
}  // namespace fastmeta

STABLE_TORCH_LIBRARY_FRAGMENT(fastmeta, m) {
  m.def(
      "head_similarity(Tensor features, Tensor logits, Tensor targets, Tensor weight, Tensor "
      "query_weight, Tensor? query_bias, int loss, float inner_product, float cosine, float l2) -> "
      "Tensor[]");
  m.def("head_limit() -> int");
}

FM_KERNELS(m) {
  m.impl("head_similarity", TORCH_BOX(&fastmeta::head_similarity));
}

STABLE_TORCH_LIBRARY_IMPL(fastmeta, CompositeExplicitAutograd, m) {
  m.impl("head_limit", TORCH_BOX(&fastmeta::head_limit));
}
