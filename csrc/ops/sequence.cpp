// The sequence_step op: schema, checks and allocation.
#include <sys/mman.h>

#include "cpu/kernels.h"
#include "fastmeta/sequence_plan.h"
#include "ops/targets.h"

namespace fastmeta {
namespace {

using Numbers = std::vector<double>;

constexpr int64_t kFields = 5;  // of a layer: kind, option, weight, bias, sets

// Layers with their shapes, and the sizes of the parameters.
struct Sequence {
  std::vector<SequenceLayer> layers;
  Ints sizes;
  int64_t size = 0;
  int64_t stats = 0;
};

[[noreturn]] void fail_at(size_t l, const std::string& message) {
  fail("sequence_step: layer " + std::to_string(l) + ": " + message);
}

#define FM_LAYER(holds, message)         \
  do {                                   \
    if (!(holds)) fail_at(l, (message)); \
  } while (false)

// (tasks, examples, channels, height, width), or (tasks, examples, features).
LayerMap input_map(const Tensor& x) {
  FM_REQUIRE(x.dim() == 3 || x.dim() == 5,
             "sequence_step: expected examples (tasks, examples, channels, height, width) or "
             "(tasks, examples, features), got shape " +
                 shape_of(x) + ".");
  LayerMap map{x.size(2), 1, 1, 0};
  if (x.dim() == 5) {
    map.h = x.size(3);
    map.w = x.size(4);
  }
  map.row = map.size();
  return map;
}

// Whether the pixels of contiguous images, with all their channels, follow one another.
bool channels_last(const Tensor& x) {
  const int64_t c = x.size(2), w = x.size(4), image = c * x.size(3) * w;
  const Ints strides{x.size(1) * image, image, 1, w * c, c};
  for (int64_t d = 0; d < 5; ++d)
    if (x.size(d) > 1 && x.stride(d) != strides[d]) return false;
  return true;
}

SequenceExamples examples_of(const Tensor& x) {
  const bool first = x.dim() == 5 && !channels_last(x);
  return {nullptr, nullptr, x.size(1), first};
}

class Reader {
 public:
  Reader(const Tensors& params, const Ints& fields, const Numbers& numbers, const Tensor& x)
      : params_(params), used_(params.size()) {
    FM_REQUIRE(!params.empty() && !fields.empty() && fields.size() % kFields == 0 &&
                   fields.size() / kFields == numbers.size(),
               "sequence_step: expected at least one parameter, and five integers and one number "
               "per layer.");
    for (size_t i = 0; i < params.size(); ++i) {
      FM_REQUIRE(
          same_kind(params[i], params[0]) && params[i].is_contiguous() && !params[i].is_cuda(),
          "sequence_step: parameter " + std::to_string(i) +
              ": all parameters must be contiguous, on the CPU and have one dtype.");
      offsets_.push_back(out_.size);
      out_.sizes.push_back(params[i].numel());
      out_.size += params[i].numel();
    }
    LayerMap map = input_map(x);
    for (size_t l = 0; l < numbers.size(); ++l)
      map = read(l, &fields[l * kFields], numbers[l], map);
    FM_REQUIRE(out_.layers.back().kind == LayerKind::linear,
               "sequence_step: the last layer must be linear.");
    for (size_t i = 0; i < used_.size(); ++i)
      FM_REQUIRE(used_[i], "sequence_step: parameter " + std::to_string(i) + " has no layer.");
  }
  Sequence take() { return std::move(out_); }

 private:
  LayerMap read(size_t l, const int64_t* fields, double number, const LayerMap& in) {
    FM_LAYER(fields[0] >= 0 && fields[0] < kLayerKinds, "unknown kind.");
    SequenceLayer layer{};
    layer.kind = static_cast<LayerKind>(fields[0]);
    layer.option = fields[1];
    layer.number = number;
    layer.sets = fields[4];
    layer.in = in;
    FM_LAYER(layer.sets == 1 || (layer.sets > 1 && layer.kind == LayerKind::norm),
             "expected one set of parameters; more for a normalisation only.");
    const bool image = in.row == in.size() && in.h * in.w > 0;
    int64_t features = in.c;
    switch (layer.kind) {
      case LayerKind::conv: {
        FM_LAYER(image && (layer.option == 1 || layer.option == 2),
                 "a convolution takes images, at stride 1 or 2.");
        const Tensor& w = weight(l, fields[2]);
        FM_LAYER(w.dim() == 4 && w.size(1) == in.c && w.size(2) == 3 && w.size(3) == 3,
                 "expected a weight (out, " + std::to_string(in.c) + ", 3, 3), got shape " +
                     shape_of(w) + ".");
        features = w.size(0);
        break;
      }
      case LayerKind::norm:
        FM_LAYER(layer.option >= 0 && layer.option <= kNormLinear,
                 "a normalisation with pooling has ReLU.");
        FM_LAYER(
            l > 0 && image && (!(layer.option & kNormPools) || (in.h > 1 && in.w > 1)),
            "a normalisation follows another layer, and with pooling takes 2x2 pixels or more.");
        for (int64_t i = 0; i < 2 * layer.sets; ++i) vector(l, fields[2] + i, in.c);
        FM_LAYER(fields[3] == fields[2] + 1, "its bias must be the parameter after its weight.");
        layer.stats = out_.stats;
        out_.stats += 2 * in.c;
        break;
      case LayerKind::activation:
        FM_LAYER(
            layer.option >= 0 && (layer.option < kMlpActivations || layer.option == kLeakyRelu),
            "unknown activation.");
        break;
      case LayerKind::max_pool:
      case LayerKind::mean_pool:
        FM_LAYER(image && layer.option >= 0 && layer.option <= std::min(in.h, in.w),
                 "pooling takes images not smaller than its window.");
        FM_LAYER(layer.option > 0 || layer.kind == LayerKind::mean_pool,
                 "max-pooling needs a window.");
        break;
      case LayerKind::linear: {
        const Tensor& w = weight(l, fields[2]);
        FM_LAYER(w.dim() == 2 && w.size(1) == in.size(), "expected a weight (out, " +
                                                             std::to_string(in.size()) +
                                                             "), got shape " + shape_of(w) + ".");
        features = w.size(0);
        break;
      }
    }
    const bool has_weight = layer.kind == LayerKind::conv || layer.kind == LayerKind::norm ||
                            layer.kind == LayerKind::linear;
    const bool has_bias = has_weight && fields[3] >= 0;
    layer.weight = has_weight ? offsets_[fields[2]] : -1;
    layer.bias = has_bias ? offsets_[fields[3]] : -1;
    layer.first = has_weight ? fields[2] : 0;
    if (has_bias && layer.kind != LayerKind::norm) {
      FM_LAYER(fields[3] == fields[2] + 1, "its bias must be the parameter after its weight.");
      vector(l, fields[3], features);
    }
    layer.out = output_of(layer, in, features);
    FM_LAYER(layer.out.size() > 0, "its output is empty.");
    if (!out_.layers.empty()) {
      const SequenceLayer& below = out_.layers.back();
      layer.before = below.before + below.out.row;
    }
    out_.layers.push_back(layer);
    return layer.out;
  }

  const Tensor& weight(size_t l, int64_t i) {
    FM_LAYER(i >= 0 && i < static_cast<int64_t>(params_.size()) && !used_[i],
             "parameter " + std::to_string(i) + " does not exist, or another layer has it.");
    used_[i] = true;
    return params_[i];
  }
  void vector(size_t l, int64_t i, int64_t size) {
    const Tensor& p = weight(l, i);
    FM_LAYER(p.dim() == 1 && p.size(0) == size, "expected " + std::to_string(size) +
                                                    " values in parameter " + std::to_string(i) +
                                                    ", got shape " + shape_of(p) + ".");
  }

  const Tensors& params_;
  std::vector<bool> used_;
  Ints offsets_;
  Sequence out_;
};

// Checks one split; x and y are made contiguous in place, images in either order of channels.
SequenceExamples read_examples(Tensor& x, Tensor& y, const Tensor& like, const Tensor& first,
                               int64_t out, Loss loss, const std::string& split) {
  const std::string name = "sequence_step: " + split;
  bool fits =
      same_kind(x, like) && x.dim() == first.dim() && x.size(0) == first.size(0) && x.size(1) > 0;
  for (int64_t d = 2; fits && d < x.dim(); ++d) fits = x.size(d) == first.size(d);
  FM_REQUIRE(fits, name + "_x: expected examples like the support set's, " + shape_of(first) +
                       ", of the parameters' dtype, at least one; got shape " + shape_of(x) + ".");
  const bool classes = loss == Loss::cross_entropy;
  FM_REQUIRE((classes ? y.scalar_type() == ScalarType::Long && y.dim() == 2
                      : same_kind(y, like) && y.dim() == 3 && y.size(2) == out) &&
                 y.size(0) == x.size(0) && y.size(1) == x.size(1),
             name +
                 "_y: expected (tasks, examples) int64 class numbers for cross-entropy, or "
                 "(tasks, examples, outputs) numbers of the parameters' dtype for mse; got "
                 "shape " +
                 shape_of(y) + ".");
  SequenceExamples examples = examples_of(x);
  if (examples.channels_first || x.dim() == 3) x = dense(x);
  y = dense(y);
  if (classes) require_classes(y, out, name + "_y");
  examples.x = x.const_data_ptr();
  examples.y = y.const_data_ptr();
  return examples;
}

// The arguments that decide about memory.
SequenceArgs read_args(const Tensors& params, const Sequence& sequence, int64_t steps,
                       const Ints& differentiated, double lam_d, double lam_c, double lam_2) {
  FM_REQUIRE(
      params[0].scalar_type() == ScalarType::Float || params[0].scalar_type() == ScalarType::Double,
      "sequence_step: parameters must be float32 or float64.");
  FM_REQUIRE(steps >= 0, "sequence_step: the number of inner steps must not be negative.");
  FM_REQUIRE(!differentiated.empty() && differentiated.size() % params.size() == 0,
             "sequence_step: expected masks over the " + std::to_string(params.size()) +
                 " parameters, at least one; got " + std::to_string(differentiated.size()) +
                 " values.");
  SequenceArgs args{};
  args.dtype = dtype_of(params[0]);
  args.layers = sequence.layers.data();
  args.depth = static_cast<int64_t>(sequence.layers.size());
  args.size = sequence.size;
  args.sizes = sequence.sizes.data();
  args.count = static_cast<int64_t>(params.size());
  args.steps = steps;
  args.differentiated = differentiated.data();
  args.masks = static_cast<int64_t>(differentiated.size() / params.size());
  args.lam_d = lam_d;
  args.lam_c = lam_c;
  args.lam_2 = lam_2;
  args.stats_size = sequence.stats;
  return args;
}

int64_t sequence_workspace(const Tensors& params, const Ints& layers, const Numbers& numbers,
                           const Tensor& support_x, const Tensor& query_x, int64_t steps,
                           const Ints& differentiated, double lam_d, double lam_c, double lam_2) {
  const Sequence sequence = Reader(params, layers, numbers, support_x).take();
  SequenceArgs args = read_args(params, sequence, steps, differentiated, lam_d, lam_c, lam_2);
  args.support = examples_of(support_x);
  args.query = examples_of(query_x);
  return plan_sequence(args).total;
}

// Asks for huge pages, which spare most misses of the translation of addresses.
void prefer_huge_pages(void* memory, int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kHuge = uintptr_t{1} << 21;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kHuge - 1) / kHuge * kHuge;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / kHuge * kHuge;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// Where a result of a shape goes.
void* result_in(const Tensor& t, const Ints& shape, const Tensor& like, const char* name) {
  FM_REQUIRE(t.dim() == static_cast<int64_t>(shape.size()) && has_shape(t, shape) &&
                 same_kind(t, like) && t.is_contiguous(),
             std::string("sequence_step: ") + name +
                 " must be contiguous, of the parameters' dtype and of another shape than " +
                 shape_of(t) + ".");
  return t.mutable_data_ptr();
}

void sequence_step(const Tensors& params, const Ints& layers, const Numbers& numbers,
                   Tensor support_x, Tensor support_y, Tensor query_x, Tensor query_y, int64_t loss,
                   double lr, int64_t steps, const Ints& differentiated, double lam_d, double lam_c,
                   double lam_2, int64_t workers, const Tensor& workspace,
                   const Tensor& meta_gradients, const std::optional<Tensor>& inner_gradients,
                   const Tensor& support_loss, const Tensor& query_loss, const Tensor& query_output,
                   const Tensor& statistics) {
  const Sequence sequence = Reader(params, layers, numbers, support_x).take();
  SequenceArgs args = read_args(params, sequence, steps, differentiated, lam_d, lam_c, lam_2);
  FM_REQUIRE(loss >= 0 && loss < kLosses, "sequence_step: unknown loss.");
  FM_REQUIRE(!inner_gradients || steps > 0,
             "sequence_step: the mean inner gradient needs at least one inner step.");
  const Tensor& like = params[0];
  const ScalarType type = like.scalar_type();
  const int64_t out = sequence.layers.back().out.c, tasks = support_x.size(0);
  args.loss = static_cast<Loss>(loss);
  args.tasks = tasks;
  args.lr = lr;
  args.workers = workers;
  args.support = read_examples(support_x, support_y, like, support_x, out, args.loss, "support");
  args.query = read_examples(query_x, query_y, like, support_x, out, args.loss, "query");
  FM_REQUIRE(workers > 0 && same_kind(workspace, like) && workspace.is_contiguous() &&
                 workspace.numel() >= workers * plan_sequence(args).total,
             "sequence_step: the workspace must hold what sequence_workspace says, for each of "
             "the workers.");
  const Ints rows{tasks, sequence.size};
  args.rows = result_in(meta_gradients, rows, like, "meta_gradients");
  args.inner =
      inner_gradients ? result_in(*inner_gradients, rows, like, "inner_gradients") : nullptr;
  args.support_loss = result_in(support_loss, {tasks}, like, "support_loss");
  args.query_loss = result_in(query_loss, {tasks}, like, "query_loss");
  args.query_output = result_in(query_output, {tasks, args.query.n, out}, like, "query_output");
  args.stats = result_in(statistics, {tasks, steps + 1, sequence.stats}, like, "statistics");
  const Tensor flat = empty(like, {sequence.size}, type);
  char* to = static_cast<char*>(flat.mutable_data_ptr());
  for (const Tensor& p : params) {
    const int64_t bytes = p.numel() * element_size(p);
    std::memcpy(to, p.const_data_ptr(), static_cast<size_t>(bytes));
    to += bytes;
  }
  args.params = flat.const_data_ptr();
  args.memory = workspace.mutable_data_ptr();
  prefer_huge_pages(args.memory, workspace.numel() * element_size(workspace));
  cpu::kernels().sequence_step(args, torch_threads());
}

}  // namespace
}  // namespace fastmeta

STABLE_TORCH_LIBRARY_FRAGMENT(fastmeta, m) {
  m.def(
      "sequence_step(Tensor[] params, int[] layers, float[] numbers, Tensor support_x, Tensor "
      "support_y, Tensor query_x, Tensor query_y, int loss, float lr, int steps, int[] "
      "differentiated, float lam_d, float lam_c, float lam_2, int workers, Tensor(a!) workspace, "
      "Tensor(b!) meta_gradients, Tensor(c!)? inner_gradients, Tensor(d!) support_loss, Tensor(e!) "
      "query_loss, Tensor(f!) query_output, Tensor(g!) statistics) -> ()");
  m.def(
      "sequence_workspace(Tensor[] params, int[] layers, float[] numbers, Tensor support_x, "
      "Tensor query_x, int steps, int[] differentiated, float lam_d, float lam_c, float lam_2) -> "
      "int");
}

STABLE_TORCH_LIBRARY_IMPL(fastmeta, CPU, m) {
  m.impl("sequence_step", TORCH_BOX(&fastmeta::sequence_step));
  m.impl("sequence_workspace", TORCH_BOX(&fastmeta::sequence_workspace));
}
