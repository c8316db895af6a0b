// fastmeta._testing.cuda: the CUDA kernels, emulated on the CPU, on NumPy arrays.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>

#include "emulation/block.h"
#include "emulation/kernels.h"
#include "emulation/names.h"

namespace py = pybind11;
namespace fastmeta {
namespace {

using Bounds = std::vector<int64_t>;

Segments segments(const Bounds& bounds) {
  return {bounds.data(), static_cast<int64_t>(bounds.size()) - 1};
}

// The storage dtypes by name: NumPy has no bfloat16, so half precision comes as raw bits.
DType dtype_named(const std::string& name) {
  if (name == "float64") return DType::f64;
  if (name == "float32") return DType::f32;
  if (name == "float16") return DType::f16;
  if (name == "bfloat16") return DType::bf16;
  throw py::value_error("dtype must be float64, float32, float16 or bfloat16; got " + name);
}

// A (T, P) array with dense rows and any row stride.
Matrix matrix(const py::array& a) {
  return {a.data(), a.shape(0), a.shape(1), a.strides(0) / a.itemsize()};
}

// Scratch of a kernel, filled with kUnset, as are guard bytes past its end, which must stay so.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) : memory_(bytes + kStrip, kUnset) {}
  void* data() { return memory_.data(); }
  double* doubles() { return reinterpret_cast<double*>(memory_.data()); }
  void check() const {
    if (std::count(memory_.end() - kStrip, memory_.end(), kUnset) != kStrip)
      throw emulation::Fault("some thread writes past the end of the scratch memory");
  }

 private:
  static constexpr unsigned char kUnset = 0xff;  // NaN as float and double
  static constexpr int64_t kStrip = 256;
  std::vector<unsigned char> memory_;
};

void gram(const std::string& dtype, const py::array& g, const Bounds& bounds, py::array out,
          uint64_t seed) {
  Scratch partial(8 * count_gram_partials(segments(bounds), matrix(g), kCudaChunking));
  emulation::gram(
      {dtype_named(dtype), matrix(g), segments(bounds), partial.doubles(), out.mutable_data()},
      seed);
  partial.check();
}

void row_similarity(const std::string& dtype, const py::array& a, const py::array& b,
                    const Bounds& bounds, py::array out, uint64_t seed) {
  Scratch partial(8 * count_row_partials(segments(bounds), matrix(a), kCudaChunking));
  emulation::row_similarity({dtype_named(dtype), matrix(a), matrix(b), segments(bounds),
                             partial.doubles(), out.mutable_data()},
                            seed);
  partial.check();
}

void mean_similarity(const std::string& dtype, const py::array& g, py::array out, uint64_t seed) {
  Scratch partial(8 * count_mean_partials(matrix(g), kCudaChunking));
  emulation::mean_similarity({dtype_named(dtype), matrix(g), partial.doubles(), out.mutable_data()},
                             seed);
  partial.check();
}

void combine(const std::string& dtype, const std::vector<py::array>& g, const py::array& coef,
             const Bounds& bounds, std::vector<py::array> out, uint64_t seed) {
  Bounds pieces{0};
  std::vector<void*> pointers;
  for (py::array& o : out) {
    pieces.push_back(pieces.back() + o.size());
    pointers.push_back(o.mutable_data());
  }
  emulation::combine({dtype_named(dtype),
                      {matrix(g.front()), matrix(g.back())},
                      static_cast<int64_t>(g.size()),
                      coef.data(),
                      segments(bounds),
                      pointers.data(),
                      segments(pieces)},
                     seed);
}

// Flat arrays, one of each kind per tensor.
void inner_step(const std::string& dtype, const std::vector<py::array>& theta,
                const std::vector<py::array>& grad, const std::vector<py::array>& alpha,
                const std::vector<bool>& frozen, std::vector<py::array> out, uint64_t seed) {
  std::vector<StepItem> items;
  for (size_t k = 0; k < theta.size(); ++k)
    items.push_back({theta[k].data(), grad[k].data(), alpha[k].data(), out[k].mutable_data(),
                     theta[k].size(), alpha[k].size() != 1, frozen[k]});
  emulation::inner_step({dtype_named(dtype), items.data(), static_cast<int64_t>(items.size())},
                        seed);
}

// AdamwItem's lists of flat arrays, one array per tensor: 4 inputs and 3 outputs of the update, or
// 6 and 4 of its adjoint. `rates` are AdamwRates in order.
void adamw(const std::string& dtype, const std::vector<double>& rates,
           const std::vector<std::vector<py::array>>& in, std::vector<std::vector<py::array>> out,
           uint64_t seed) {
  std::vector<AdamwItem> items(in[0].size());
  for (size_t k = 0; k < items.size(); ++k) {
    for (size_t j = 0; j < in.size(); ++j) items[k].in[j] = in[j][k].data();
    for (size_t j = 0; j < out.size(); ++j) items[k].out[j] = out[j][k].mutable_data();
    items[k].n = in[0][k].size();
  }
  const AdamwArgs args{dtype_named(dtype),
                       {rates.at(0), rates.at(1), rates.at(2), rates.at(3), rates.at(4),
                        rates.at(5), rates.at(6), rates.at(7)},
                       items.data(),
                       static_cast<int64_t>(items.size())};
  in.size() == 4 ? emulation::adamw_step(args, seed) : emulation::adamw_adjoint(args, seed);
}

void hvp_perturb(const std::string& dtype, const py::array& theta, const py::array& v,
                 const py::array& eps, py::array plus, py::array minus, uint64_t seed) {
  emulation::hvp_perturb({dtype_named(dtype), theta.shape(0), theta.shape(1), theta.data(),
                          v.data(), eps.data(), plus.mutable_data(), minus.mutable_data()},
                         seed);
}

void hvp_difference(const std::string& dtype, const py::array& v, const py::array& g_plus,
                    const py::array& g_minus, const py::array& eps, const py::array& alpha,
                    py::array out, uint64_t seed) {
  emulation::hvp_difference(
      {dtype_named(dtype), v.shape(0), v.shape(1), v.data(), g_plus.data(), g_minus.data(),
       eps.data(), alpha.data(), alpha.size() != 1, out.mutable_data()},
      seed);
}

void pack(const std::vector<py::array>& sources, std::vector<py::array> targets, uint64_t seed) {
  std::vector<Copy> copies;
  for (size_t k = 0; k < sources.size(); ++k)
    copies.push_back({sources[k].data(), targets[k].mutable_data(), sources[k].nbytes()});
  emulation::pack(copies.data(), static_cast<int64_t>(copies.size()), seed);
}

void gsl_coefficients(const std::string& dtype, const py::array& stats, const py::array& weight,
                      const py::array& rate, double lam_c, double lam_2, int magnitude,
                      double ratio, double eps, double noise, py::array out, uint64_t seed) {
  emulation::gsl_coefficients({dtype_named(dtype),
                               stats.data(),
                               weight.data(),
                               rate.data(),
                               stats.shape(0),
                               stats.shape(1),
                               {lam_c, lam_2, static_cast<Magnitude>(magnitude), ratio, eps, noise},
                               out.mutable_data()},
                              seed);
}

void task_weights(const std::string& dtype, const py::array& stats, int rule, double lam_c,
                  double lam_2, double tau, py::array out, uint64_t seed) {
  emulation::task_weights({dtype_named(dtype), stats.data(), stats.shape(0),
                           static_cast<TaskWeight>(rule), lam_c, lam_2, tau, out.mutable_data()},
                          seed);
}

std::vector<MlpLayer> layers_of(const std::vector<py::array>& params,
                                const std::vector<int>& activations) {
  std::vector<MlpLayer> layers;
  for (const py::array& p : params)
    if (p.ndim() == 2)
      layers.push_back({p.shape(1), p.shape(0), p.data(), nullptr, Activation::relu});
    else
      layers.back().bias = p.data();
  for (size_t l = 0; l < activations.size(); ++l)
    layers[l].activation = static_cast<Activation>(activations[l]);
  return layers;
}

// `data`: x and y of the support set and of the query set. `out`: rows, inner (or an empty array),
// support and query loss, query output. `lam`: lam_d, lam_c and lam_2. At most `shared_capacity`
// elements of shared memory per block, and at most `blocks` blocks. Returns the elements of shared
// memory and scratch per block.
py::tuple mlp_step(const std::string& dtype, const std::vector<py::array>& params,
                   const std::vector<py::array>& data, const std::vector<int>& activations,
                   int loss, double lr, int64_t steps, const std::vector<int64_t>& differentiated,
                   const std::vector<double>& lam, int64_t shared_capacity, int64_t blocks,
                   std::vector<py::array> out, uint64_t seed) {
  const std::vector<MlpLayer> layers = layers_of(params, activations);
  const MlpArgs args{dtype_named(dtype),
                     layers.data(),
                     static_cast<int64_t>(layers.size()),
                     static_cast<Loss>(loss),
                     data[0].shape(0),
                     {data[0].data(), data[1].data(), data[0].shape(1)},
                     {data[2].data(), data[3].data(), data[2].shape(1)},
                     lr,
                     steps,
                     differentiated.data(),
                     static_cast<int64_t>(differentiated.size() / layers.size()),
                     lam[0],
                     lam[1],
                     lam[2],
                     out[0].mutable_data(),
                     out[1].size() ? out[1].mutable_data() : nullptr,
                     out[2].mutable_data(),
                     out[3].mutable_data(),
                     out[4].mutable_data()};
  MlpPlan plan = plan_mlp(args, shared_capacity);
  plan.blocks = std::min(plan.blocks, blocks);
  Scratch scratch(plan.blocks * plan.scratch * (args.dtype == DType::f64 ? 8 : 4));
  emulation::mlp_step(args, plan, scratch.data(), seed);
  scratch.check();
  return py::make_tuple(plan.shared, plan.scratch);
}

// `data`: features, logits, targets, weight, query weight and, with a bias, query bias. `out`: as
// the op's outputs but the similarity, which has its own dtype. At most `shared_bytes` of dynamic
// shared memory per block, and at most `blocks` blocks. Returns the elements of shared memory and
// scratch per block.
py::tuple head_similarity(const std::string& dtype, const std::vector<py::array>& data, int loss,
                          double inner_product, double cosine, double l2, int64_t shared_bytes,
                          int64_t blocks, std::vector<py::array> out, py::array similarity,
                          uint64_t seed) {
  const bool bias = data.size() > 5;
  const HeadSimilarityArgs args{dtype_named(dtype),
                                static_cast<Loss>(loss),
                                data[0].shape(0),
                                data[0].shape(1),
                                data[3].shape(1),
                                data[0].shape(2),
                                data[0].data(),
                                data[1].data(),
                                data[2].data(),
                                data[3].data(),
                                data[4].data(),
                                bias ? data[5].data() : nullptr,
                                inner_product,
                                cosine,
                                l2,
                                out[0].mutable_data(),
                                bias ? out[3].mutable_data() : nullptr,
                                similarity.mutable_data(),
                                out[1].mutable_data(),
                                out[2].mutable_data(),
                                bias ? out[4].mutable_data() : nullptr};
  HeadPlan plan = plan_head(args, shared_bytes);
  plan.blocks = std::min(plan.blocks, blocks);
  Scratch scratch(plan.blocks * plan.scratch * (args.dtype == DType::f64 ? 8 : 4));
  emulation::head_similarity(args, plan, scratch.data(), seed);
  scratch.check();
  return py::make_tuple(plan.shared, plan.scratch);
}

// Images (groups * n, h, w, c); weights (groups, c).
NormInput norm_input(const std::string& dtype, const py::array& x, const py::array& weight,
                     const py::array& bias, double eps, bool pool) {
  const int64_t groups = weight.shape(0);
  return {dtype_named(dtype),
          groups,
          x.shape(0) / groups,
          x.shape(3),
          x.shape(1),
          x.shape(2),
          eps,
          pool,
          x.data(),
          weight.data(),
          bias.data()};
}

// Scratch between the passes of a norm kernel.
struct NormMemory {
  Scratch partial, coef;
  NormScratch pointers;

  NormMemory(const NormInput& in, bool pool, int sums, int coefs)
      : partial(8 * count_norm_partials(in, norm_plan(in, pool), sums)),
        coef((in.dtype == DType::f64 ? 8 : 4) * coefs * in.groups * in.c),
        pointers{partial.doubles(), coef.data()} {}
  void check() const {
    partial.check();
    coef.check();
  }
};

// out: z, mean, var.
void norm_forward(const std::string& dtype, const py::array& x, const py::array& weight,
                  const py::array& bias, double eps, bool pool, std::vector<py::array> out,
                  uint64_t seed) {
  const NormInput in = norm_input(dtype, x, weight, bias, eps, pool);
  NormMemory memory(in, false, kNormMoments, 0);
  emulation::norm_forward({in, out[0].mutable_data(), out[1].mutable_data(), out[2].mutable_data()},
                          memory.pointers.partial, seed);
  memory.check();
}

// out: the gradients of x, weight and bias.
void norm_backward(const std::string& dtype, const py::array& dz, const py::array& x,
                   const py::array& weight, const py::array& bias, const py::array& mean,
                   const py::array& var, double eps, bool pool, std::vector<py::array> out,
                   uint64_t seed) {
  const NormInput in = norm_input(dtype, x, weight, bias, eps, pool);
  NormMemory memory(in, pool, kNormBackwardSums, kNormBackwardCoefs);
  emulation::norm_backward({in, mean.data(), var.data(), dz.data(), out[0].mutable_data(),
                            out[1].mutable_data(), out[2].mutable_data()},
                           memory.pointers, seed);
  memory.check();
}

// direction: u, p, q; out: the tangents of z and of the gradients of x and weight, or of z alone,
// which needs no dz.
void norm_second(const std::string& dtype, const py::array& dz,
                 const std::vector<py::array>& direction, const py::array& x,
                 const py::array& weight, const py::array& bias, const py::array& mean,
                 const py::array& var, double eps, bool pool, std::vector<py::array> out,
                 uint64_t seed) {
  const NormInput in = norm_input(dtype, x, weight, bias, eps, pool);
  NormMemory memory(in, pool, kNormSecondSums, kNormSecondCoefs);
  const bool all = out.size() > 1;
  emulation::norm_second(
      {in, mean.data(), var.data(), all ? dz.data() : nullptr, direction[0].data(),
       direction[1].data(), direction[2].data(), out[0].mutable_data(),
       all ? out[1].mutable_data() : nullptr, all ? out[2].mutable_data() : nullptr},
      memory.pointers, seed);
  memory.check();
}

Heads heads(const py::array& a) {
  const auto stride = [&](int d) { return a.strides(d) / a.itemsize(); };
  return {a.data(), stride(0), stride(1), stride(2)};
}

// mask: None, or as (batch, heads, queries, keys): bytes for a boolean one.
AttentionInput attention_input(const std::string& dtype, const py::array& q, const py::array& k,
                               const py::array& v, const py::object& mask, bool causal,
                               int64_t window, double scale, py::array& stats) {
  AttentionInput in{};
  in.dtype = dtype_named(dtype);
  in.batch = q.shape(0), in.heads = q.shape(1), in.queries = q.shape(2), in.width = q.shape(3);
  in.kv_heads = k.shape(1), in.keys = k.shape(2), in.value_width = v.shape(3);
  in.causal = causal, in.window = window, in.scale = scale;
  in.q = heads(q), in.k = heads(k), in.v = heads(v);
  in.stats = stats.mutable_data();
  if (mask.is_none()) return in;
  const auto values = mask.cast<py::array>();
  const Heads m = heads(values);
  in.mask = {
      values.itemsize() == 1 ? MaskKind::keep : MaskKind::add, m.data, m.batch, m.head, m.row, 1};
  return in;
}

// tensors: q, k, v, dout, tdout, tq, tk, tv. out: output, statistics, gradients of q, k and v,
// tangent of the output, the same again with the tangents of the gradients. capability: of the GPU.
void attention(const std::string& dtype, const std::vector<py::array>& tensors,
               const py::object& mask, bool along, bool causal, int64_t window, double scale,
               int capability, std::vector<py::array> out, uint64_t seed) {
  const AttentionInput in = attention_input(dtype, tensors[0], tensors[1], tensors[2], mask, causal,
                                            window, scale, out[1]);
  const auto at = [&](int i) { return out[i].mutable_data(); };
  const int64_t element = in.dtype == DType::f64 ? 8 : 4;
  Scratch mean(element * attention_cuda_scratch(in, 0));
  Scratch rows(element * attention_cuda_scratch(in, kAttentionSecondRows));
  const Heads dout = heads(tensors[3]);
  emulation::attention_forward({in, at(0)}, capability, seed);
  const Heads output = heads(out[0]);
  emulation::attention_backward({in, dout, output, mean.data(), at(2), at(3), at(4)}, capability,
                                seed);
  AttentionTangentArgs tangent{
      in, heads(tensors[5]), heads(tensors[6]), heads(tensors[7]), output, at(5)};
  emulation::attention_tangent(tangent, capability, seed);
  tangent.tout = at(6);
  emulation::attention_second(
      {tangent, dout, along ? heads(tensors[4]) : Heads{}, rows.data(), at(7), at(8), at(9)},
      capability, seed);
  mean.check();
  rows.check();
}

// tensors: x, dy, tdy, tx (groups, rows, width), weight, bias, tweight, tbias (groups, width). out:
// y, statistics, dx, dweight, dbias, the tangent of y, the same again with those of the gradients.
void row_norm(const std::string& dtype, const std::string& weight_dtype,
              const std::vector<py::array>& tensors, bool along, bool centred, double eps,
              std::vector<py::array> out, uint64_t seed) {
  const auto from = [&](int i) { return tensors[i].data(); };
  const auto at = [&](int i) { return out[i].mutable_data(); };
  const py::array& x = tensors[0];
  const RowNormInput in{dtype_named(dtype),
                        dtype_named(weight_dtype),
                        x.shape(0),
                        x.shape(1),
                        x.shape(2),
                        centred,
                        from(0),
                        from(4),
                        at(1)};
  const int64_t bytes = (in.dtype == DType::f64 ? 8 : 4) * row_norm_scratch(in);
  Scratch first(bytes), second(bytes);
  emulation::row_norm_forward({in, eps, from(5), at(0)}, seed);
  emulation::row_norm_backward({in, from(1), first.data(), at(2), at(3), at(4)}, seed);
  RowNormSecondArgs args{in,      nullptr, nullptr, from(3), from(6), from(7),
                         nullptr, at(5),   nullptr, nullptr, nullptr};
  emulation::row_norm_second(args, seed);
  args.dy = from(1);
  args.tdy = along ? from(2) : nullptr;
  args.scratch = second.data();
  args.ty = at(6), args.dx = at(7), args.dweight = at(8), args.dbias = at(9);
  emulation::row_norm_second(args, seed);
  first.check();
  second.check();
}

// tensors: x, dout, tdout, tx. out: y, dx, and the tangents of both.
void activation(const std::string& dtype, int kind, const std::vector<py::array>& tensors,
                bool along, std::vector<py::array> out, uint64_t seed) {
  const DType d = dtype_named(dtype);
  const auto f = static_cast<Activation>(kind);
  const auto from = [&](int i) { return tensors[i].data(); };
  const auto at = [&](int i) { return out[i].mutable_data(); };
  const int64_t count = tensors[0].size();
  emulation::activation_forward({d, f, count, from(0), at(0)}, seed);
  emulation::activation_backward({d, f, count, from(0), from(1), at(1)}, seed);
  emulation::activation_second(
      {d, f, count, from(0), from(1), along ? from(2) : nullptr, from(3), at(2), at(3)}, seed);
}

// tensors: z, tz (rows, classes), dloss, tdloss (rows). out: loss, logsumexp, dz, the tangent of
// the loss, the same again with that of dz.
void cross_entropy(const std::string& dtype, const std::vector<py::array>& tensors,
                   const py::array& target, int64_t ignored, double smoothing, bool along,
                   std::vector<py::array> out, uint64_t seed) {
  const auto from = [&](int i) { return tensors[i].data(); };
  const auto at = [&](int i) { return out[i].mutable_data(); };
  const CrossEntropyInput in{dtype_named(dtype),
                             tensors[0].shape(0),
                             tensors[0].shape(1),
                             from(0),
                             static_cast<const int64_t*>(target.data()),
                             ignored,
                             smoothing,
                             at(1)};
  emulation::cross_entropy_forward({in, at(0)}, seed);
  emulation::cross_entropy_backward({in, from(2), at(2)}, seed);
  emulation::cross_entropy_second({in, nullptr, nullptr, from(1), at(3), nullptr}, seed);
  emulation::cross_entropy_second({in, from(2), along ? from(3) : nullptr, from(1), at(4), at(5)},
                                  seed);
}

void faulty(const std::string& name, const py::array& in, py::array out, uint64_t seed) {
  emulation::faulty(name.c_str(), static_cast<const float*>(in.data()), static_cast<int>(in.size()),
                    static_cast<float*>(out.mutable_data()), seed);
}

}  // namespace

void add_emulation(py::module_& m) {
  py::module_ cuda = m.def_submodule("cuda", "The CUDA kernels, emulated on the CPU.");
  py::register_exception<emulation::Fault>(cuda, "Fault", PyExc_RuntimeError);
  cuda.def("gram", &gram);
  cuda.def("row_similarity", &row_similarity);
  cuda.def("mean_similarity", &mean_similarity);
  cuda.def("combine", &combine);
  cuda.def("inner_step", &inner_step);
  cuda.def("adamw", &adamw);
  cuda.def("hvp_perturb", &hvp_perturb);
  cuda.def("hvp_difference", &hvp_difference);
  cuda.def("pack", &pack);
  cuda.def("gsl_coefficients", &gsl_coefficients);
  cuda.def("task_weights", &task_weights);
  cuda.def("mlp_step", &mlp_step);
  cuda.def("head_similarity", &head_similarity);
  cuda.def("norm_forward", &norm_forward);
  cuda.def("norm_backward", &norm_backward);
  cuda.def("norm_second", &norm_second);
  cuda.def("attention", &attention);
  cuda.def("row_norm", &row_norm);
  cuda.def("activation", &activation);
  cuda.def("cross_entropy", &cross_entropy);
  cuda.def("faulty", &faulty);
  cuda.def("kernels_run", &emulation::kernels_run);
  cuda.attr("sanitizers") = FM_SANITIZERS;
}

}  // namespace fastmeta
