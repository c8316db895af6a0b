// fastmeta._testing: kernels and cores on NumPy arrays, without torch. Every instruction set of the
// processor can be called by name, unlike in the ops, which use the best one.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/kernels.h"

namespace py = pybind11;
namespace fastmeta {
namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

const cpu::Kernels& table(const std::string& isa) {
  const cpu::Kernels* kernels = cpu::kernels_for(isa.c_str());
  if (!kernels) throw py::value_error("instruction set '" + isa + "' is not available here");
  return *kernels;
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> found;
  for (const char* isa : {"baseline", "avx2", "avx512"})
    if (cpu::kernels_for(isa)) found.push_back(isa);
  return found;
}

template <class T>
constexpr DType kDType = sizeof(T) == 8 ? DType::f64 : DType::f32;

template <class T>
Array<T> gram(const std::string& isa, const Array<T>& g, const std::vector<int64_t>& bounds) {
  const int64_t tasks = g.shape(0), cols = g.shape(1);
  const Segments parts{bounds.data(), static_cast<int64_t>(bounds.size()) - 1};
  std::vector<double> partial(count_chunks(parts, cols, kCpuChunking) * tasks * tasks);
  Array<T> out({parts.count, tasks, tasks});
  table(isa).gram(
      {kDType<T>, {g.data(), tasks, cols, cols}, parts, partial.data(), out.mutable_data()},
      Parallel(run_serially));
  return out;
}

template <class T>
Array<T> mean_similarity(const std::string& isa, const Array<T>& g) {
  const int64_t tasks = g.shape(0), cols = g.shape(1);
  const int64_t bounds[2] = {0, cols};
  std::vector<double> partial(count_chunks({bounds, 1}, cols, kCpuChunking) * tasks * 2);
  Array<T> out({tasks, int64_t{2}});
  table(isa).mean_similarity(
      {kDType<T>, {g.data(), tasks, cols, cols}, partial.data(), out.mutable_data()},
      Parallel(run_serially));
  return out;
}

template <class T>
Array<T> combine(const std::string& isa, const Array<T>& g, const Array<T>& coef) {
  const int64_t tasks = g.shape(0), cols = g.shape(1);
  const int64_t bounds[2] = {0, cols};
  Array<T> out(cols);
  void* pointer = out.mutable_data();
  const Matrix rows{g.data(), tasks, cols, cols};
  table(isa).combine({kDType<T>, {rows, rows}, 1, coef.data(), {bounds, 1}, &pointer, {bounds, 1}},
                     Parallel(run_serially));
  return out;
}

template <class T>
Array<T> like(const Array<T>& a) {
  return Array<T>(std::vector<py::ssize_t>(a.shape(), a.shape() + a.ndim()));
}

// For images (groups * n, h, w, in) and weights (groups, out, in, 3, 3): forward, and the gradients
// of images, weights and biases at dy.
template <class T>
std::vector<Array<T>> conv(const std::string& isa, const Array<T>& x, const Array<T>& weight,
                           const Array<T>& bias, const Array<T>& dy, int64_t stride) {
  const int64_t groups = weight.shape(0);
  const ConvShape shape{kDType<T>,  groups,     x.shape(0) / groups, x.shape(1),
                        x.shape(2), x.shape(3), weight.shape(1),     stride};
  Array<T> y = like(dy), dx = like(x), dweight = like(weight), dbias = like(bias);
  const Parallel serial(run_serially);
  table(isa).conv_forward({shape, x.data(), weight.data(), bias.data(), y.mutable_data()}, serial);
  table(isa).conv_input({shape, dy.data(), weight.data(), dx.mutable_data()}, serial);
  table(isa).conv_weight({shape, x.data(), dy.data(), dweight.mutable_data(), dbias.mutable_data()},
                         serial);
  return {y, dx, dweight, dbias};
}

// For images (groups * n, h, w, c) and weights (groups, c) or (c): forward, backward at dz, and
// second along u (and the values of weight and bias).
template <class T>
std::vector<Array<T>> norm(const std::string& isa, const Array<T>& x, const Array<T>& weight,
                           const Array<T>& bias, const Array<T>& dz, const Array<T>& u, bool pool) {
  const int64_t channels = x.shape(3), groups = weight.size() / channels;
  const NormInput in{
      kDType<T>, groups,   x.shape(0) / groups, channels,   x.shape(1), x.shape(2), 1e-3,
      pool,      x.data(), weight.data(),       bias.data()};
  Array<T> z = like(dz), mean = like(weight), var = like(weight), dx = like(x),
           dweight = like(weight), dbias = like(weight), out_z = like(dz), out_x = like(x),
           out_weight = like(weight);
  const Parallel serial(run_serially);
  table(isa).norm_forward({in, z.mutable_data(), mean.mutable_data(), var.mutable_data()}, serial);
  table(isa).norm_backward({in, mean.data(), var.data(), dz.data(), dx.mutable_data(),
                            dweight.mutable_data(), dbias.mutable_data()},
                           serial);
  table(isa).norm_second(
      {in, mean.data(), var.data(), dz.data(), u.data(), weight.data(), bias.data(),
       out_z.mutable_data(), out_x.mutable_data(), out_weight.mutable_data()},
      serial);
  return {z, mean, var, dx, dweight, dbias, out_z, out_x, out_weight};
}

// For the mean cross-entropy and a head with a bias: all outputs, weights 0.7, 0.4 and 0.2.
template <class T>
std::vector<Array<T>> head_similarity(const std::string& isa, const Array<T>& features,
                                      const Array<T>& logits, const Array<int64_t>& targets,
                                      const Array<T>& weight, const Array<T>& query_weight,
                                      const Array<T>& query_bias) {
  const int64_t tasks = features.shape(0);
  Array<T> g = like(weight), g_bias = like(query_bias), similarity({tasks, int64_t{3}}),
           d_features = like(features), d_weight = like(weight), d_bias = like(query_bias);
  table(isa).head_similarity({kDType<T>,
                              Loss::cross_entropy,
                              tasks,
                              features.shape(1),
                              weight.shape(1),
                              features.shape(2),
                              features.data(),
                              logits.data(),
                              targets.data(),
                              weight.data(),
                              query_weight.data(),
                              query_bias.data(),
                              0.7,
                              0.4,
                              0.2,
                              g.mutable_data(),
                              g_bias.mutable_data(),
                              similarity.mutable_data(),
                              d_features.mutable_data(),
                              d_weight.mutable_data(),
                              d_bias.mutable_data()},
                             Parallel(run_serially));
  return {g, g_bias, similarity, d_features, d_weight, d_bias};
}

template <class T>
Heads heads(const Array<T>& a) {
  const int64_t row = a.shape(3), head = a.shape(2) * row;
  return {a.data(), a.shape(1) * head, head, row};
}

// For (groups, rows, width): forward, backward at dy, and second along (tdy, tx, tweight, tbias).
template <class T>
std::vector<Array<T>> row_norm(const std::string& isa, const std::vector<Array<T>>& rows,
                               const std::vector<Array<T>>& weights, bool centred) {
  const Array<T>&x = rows[0], &weight = weights[0];
  Array<T> stats({x.shape(0), int64_t{2}, x.shape(1)});
  const RowNormInput in{kDType<T>, kDType<T>, x.shape(0),    x.shape(1),          x.shape(2),
                        centred,   x.data(),  weight.data(), stats.mutable_data()};
  std::vector<Array<T>> results{like(x), like(x), like(weight), like(weight),
                                like(x), like(x), like(weight), like(weight)};
  std::vector<T> scratch(row_norm_scratch(in));
  const auto out = [&](int i) { return static_cast<void*>(results[i].mutable_data()); };
  const Parallel serial(run_serially);
  table(isa).row_norm_forward({in, 1e-3, weights[1].data(), out(0)}, serial);
  table(isa).row_norm_backward({in, rows[1].data(), scratch.data(), out(1), out(2), out(3)},
                               serial);
  table(isa).row_norm_second({in, rows[1].data(), rows[2].data(), rows[3].data(), weights[2].data(),
                              weights[3].data(), scratch.data(), out(4), out(5), out(6), out(7)},
                             serial);
  return results;
}

// Output, gradient at dout, and the tangents of both along (tdout, tx).
template <class T>
std::vector<Array<T>> activation(const std::string& isa, int kind, const Array<T>& x,
                                 const Array<T>& dout, const Array<T>& tdout, const Array<T>& tx) {
  std::vector<Array<T>> results{like(x), like(x), like(x), like(x)};
  const auto out = [&](int i) { return static_cast<void*>(results[i].mutable_data()); };
  const auto f = static_cast<Activation>(kind);
  const int64_t count = x.size();
  const Parallel serial(run_serially);
  table(isa).activation_forward({kDType<T>, f, count, x.data(), out(0)}, serial);
  table(isa).activation_backward({kDType<T>, f, count, x.data(), dout.data(), out(1)}, serial);
  table(isa).activation_second(
      {kDType<T>, f, count, x.data(), dout.data(), tdout.data(), tx.data(), out(2), out(3)},
      serial);
  return results;
}

// Losses, gradient at dloss, and the tangents of both along (tdloss, tz).
template <class T>
std::vector<Array<T>> cross_entropy(const std::string& isa, const Array<T>& z,
                                    const Array<int64_t>& target, const Array<T>& dloss,
                                    const Array<T>& tdloss, const Array<T>& tz) {
  Array<T> logsumexp = like(dloss);
  const CrossEntropyInput in{kDType<T>,     z.shape(0), z.shape(1), z.data(),
                             target.data(), -100,       0.2,        logsumexp.mutable_data()};
  std::vector<Array<T>> results{like(dloss), like(z), like(dloss), like(z)};
  const auto out = [&](int i) { return static_cast<void*>(results[i].mutable_data()); };
  const Parallel serial(run_serially);
  table(isa).cross_entropy_forward({in, out(0)}, serial);
  table(isa).cross_entropy_backward({in, dloss.data(), out(1)}, serial);
  table(isa).cross_entropy_second({in, dloss.data(), tdloss.data(), tz.data(), out(2), out(3)},
                                  serial);
  return results;
}

// For (batch, heads, tokens, width): forward, backward at dout, and second along (tdout, tq, tk,
// tv).
template <class T>
std::vector<Array<T>> attention(const std::string& isa, const Array<T>& q, const Array<T>& k,
                                const Array<T>& v, const Array<T>& dout, const Array<T>& tdout,
                                const Array<T>& tq, const Array<T>& tk, const Array<T>& tv,
                                bool causal, int64_t window) {
  Array<T> stats({q.shape(0), q.shape(1), int64_t{2}, q.shape(2)});
  const AttentionInput in{kDType<T>,  q.shape(0), q.shape(1), k.shape(1),
                          q.shape(2), k.shape(2), q.shape(3), v.shape(3),
                          causal,     window,     0.3,        heads(q),
                          heads(k),   heads(v),   {},         stats.mutable_data()};
  std::vector<Array<T>> results{like(dout), like(q), like(k), like(v),
                                like(dout), like(q), like(k), like(v)};
  std::vector<T> scratch(attention_scratch(in, kAttentionSecondRows));
  const auto out = [&](int i) { return static_cast<void*>(results[i].mutable_data()); };
  const Parallel serial(run_serially);
  table(isa).attention_forward({in, out(0)}, serial);
  const Heads output = heads(results[0]);
  table(isa).attention_backward({in, heads(dout), output, scratch.data(), out(1), out(2), out(3)},
                                serial);
  table(isa).attention_second({{in, heads(tq), heads(tk), heads(tv), output, out(4)},
                               heads(dout),
                               heads(tdout),
                               scratch.data(),
                               out(5),
                               out(6),
                               out(7)},
                              serial);
  return results;
}

// The portable conversions of storage types, on raw bits.
template <class S>
Array<float> widen_bits(const Array<uint16_t>& bits) {
  Array<float> out(bits.size());
  for (py::ssize_t i = 0; i < bits.size(); ++i) out.mutable_data()[i] = widen(S{bits.data()[i]});
  return out;
}

template <class S>
Array<uint16_t> narrow_bits(const Array<float>& values) {
  Array<uint16_t> out(values.size());
  for (py::ssize_t i = 0; i < values.size(); ++i)
    out.mutable_data()[i] = narrow<S>(values.data()[i]).bits;
  return out;
}

}  // namespace

void add_emulation(py::module_& m);  // emulation.cpp

}  // namespace fastmeta

PYBIND11_MODULE(_testing, m) {
  using namespace fastmeta;
  m.def("instruction_sets", &instruction_sets);
  m.def("gram", &gram<float>, py::arg("isa"), py::arg("g").noconvert(), py::arg("bounds"));
  m.def("gram", &gram<double>, py::arg("isa"), py::arg("g").noconvert(), py::arg("bounds"));
  m.def("mean_similarity", &mean_similarity<float>, py::arg("isa"), py::arg("g").noconvert());
  m.def("mean_similarity", &mean_similarity<double>, py::arg("isa"), py::arg("g").noconvert());
  m.def("combine", &combine<float>, py::arg("isa"), py::arg("g").noconvert(), py::arg("coef"));
  m.def("combine", &combine<double>, py::arg("isa"), py::arg("g").noconvert(), py::arg("coef"));
  m.def("conv", &conv<float>, py::arg("isa"), py::arg("x").noconvert(), py::arg("weight"),
        py::arg("bias"), py::arg("dy"), py::arg("stride"));
  m.def("conv", &conv<double>, py::arg("isa"), py::arg("x").noconvert(), py::arg("weight"),
        py::arg("bias"), py::arg("dy"), py::arg("stride"));
  m.def("norm", &norm<float>, py::arg("isa"), py::arg("x").noconvert(), py::arg("weight"),
        py::arg("bias"), py::arg("dz"), py::arg("u"), py::arg("pool"));
  m.def("norm", &norm<double>, py::arg("isa"), py::arg("x").noconvert(), py::arg("weight"),
        py::arg("bias"), py::arg("dz"), py::arg("u"), py::arg("pool"));
  m.def("head_similarity", &head_similarity<float>, py::arg("isa"), py::arg("features").noconvert(),
        py::arg("logits"), py::arg("targets"), py::arg("weight"), py::arg("query_weight"),
        py::arg("query_bias"));
  m.def("head_similarity", &head_similarity<double>, py::arg("isa"),
        py::arg("features").noconvert(), py::arg("logits"), py::arg("targets"), py::arg("weight"),
        py::arg("query_weight"), py::arg("query_bias"));
  m.def("row_norm", &row_norm<float>);
  m.def("row_norm", &row_norm<double>);
  m.def("activation", &activation<float>);
  m.def("activation", &activation<double>);
  m.def("cross_entropy", &cross_entropy<float>);
  m.def("cross_entropy", &cross_entropy<double>);
  const auto add_attention = [&](auto* function) {
    m.def("attention", function, py::arg("isa"), py::arg("q").noconvert(), py::arg("k"),
          py::arg("v"), py::arg("dout"), py::arg("tdout"), py::arg("tq"), py::arg("tk"),
          py::arg("tv"), py::arg("causal"), py::arg("window"));
  };
  add_attention(&attention<float>);
  add_attention(&attention<double>);
  m.def("widen_half", &widen_bits<Half>);
  m.def("widen_bfloat16", &widen_bits<BFloat16>);
  m.def("narrow_half", &narrow_bits<Half>);
  m.def("narrow_bfloat16", &narrow_bits<BFloat16>);
  add_emulation(m);
}
