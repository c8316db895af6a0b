#include "fastmeta/sequence.h"

#include "cpu/kernels.h"
#include "cpu/sequence_network.h"

namespace fastmeta::cpu::FM_ISA {
namespace {

using namespace sequence;

// to = from + scale * delta.
template <class T>
void add_scaled(const T* from, T scale, const T* delta, int64_t size, T* to) {
  int64_t i = 0;
  for (; i + kLanes<T> <= size; i += kLanes<T>)
    store(to + i, load(from + i) + scale * load(delta + i));
  for (; i < size; ++i) to[i] = from[i] + scale * delta[i];
}

// to[0] += <a, b>, to[1] += |a|^2.
template <class T>
void add_products(const T* a, const T* b, int64_t size, double* to) {
  Vec<T> dots{}, squares{};
  int64_t i = 0;
  for (; i + kLanes<T> <= size; i += kLanes<T>) {
    const Vec<T> x = load(a + i);
    dots += x * load(b + i);
    squares += x * x;
  }
  to[0] += sum<T>(dots);
  to[1] += sum<T>(squares);
  for (; i < size; ++i) {
    to[0] += static_cast<double>(a[i]) * static_cast<double>(b[i]);
    to[1] += static_cast<double>(a[i]) * static_cast<double>(a[i]);
  }
}

// Runs the meta-step of one task after the other in its own memory.
template <class T>
class Worker {
 public:
  Worker(const SequenceArgs& args, const SequencePlan& plan, int64_t number,
         const Parallel& parallel)
      : args_(args),
        plan_(plan),
        memory_(static_cast<T*>(args.memory) + number * plan.total),
        parallel_(parallel) {}

  void run(int64_t task) const {
    const T rate = static_cast<T>(args_.lr);
    T* inner = args_.inner ? static_cast<T*>(args_.inner) + task * args_.size : nullptr;
    T* v = static_cast<T*>(args_.rows) + task * args_.size;
    if (inner) memset(inner, 0, sizeof(T) * args_.size);
    T first_loss = 0;
    if (args_.steps) copy_images(args_.support, task, at(plan_.images[0]));
    for (int64_t k = 0; k < args_.steps; ++k) {
      const Evaluation<T> support = at_step(task, k);
      T* grad = compares() ? gradient(k) : v;
      forward(support);
      const T value = differentiate(support, grad);
      if (k == 0) first_loss = value;
      if (inner) add_scaled<T>(inner, 1, grad, args_.size, inner);
      add_scaled<T>(theta(k), -rate, grad, args_.size, theta_after(k));
    }
    if (inner) scale(inner, T(1) / static_cast<T>(args_.steps));
    copy_images(args_.query, task, at(plan_.images[1]));
    const Evaluation<T> query = at_query(task);
    forward(query);
    write_output(query, task);
    const T value = differentiate(query, v);
    static_cast<T*>(args_.query_loss)[task] = value;
    static_cast<T*>(args_.support_loss)[task] = args_.steps ? first_loss : value;
    if (plan_.kept) pull_back(task, v);
  }

 private:
  // The reverse sweep: v <- v - lr H_k d_k from the last step to the first.
  void pull_back(int64_t task, T* v) const {
    const T rate = static_cast<T>(scales_only(args_) ? args_.lr * args_.lam_d : args_.lr);
    const bool all = differentiates_all(args_);
    T *d = all ? v : at(plan_.cotangent), *product = at(plan_.product);
    for (int64_t k = args_.steps; k-- > 0;) {
      if (lowest_differentiated(args_, k) == args_.count) continue;
      const int64_t* mask = mask_of(args_, k);
      if (!all) compare(v, compares() ? gradient(k) : nullptr, mask, d);
      if (has_sets()) memset(product, 0, sizeof(T) * args_.size);
      Evaluation<T> support = at_step(task, k);
      const int64_t n = support.n;
      support.extremes = nullptr;  // those of the query
      if (plan_.lowest <= plan_.dropped) {
        T* dropped = at(plan_.values + n * plan_.maps);
        if (support.again) support.again = dropped;
        if (support.second) support.second = dropped + 2 * n * plan_.first;
        support.part = n;
      }
      hessian_product<T>(support, d, mask, at(plan_.values), product);
      add_scaled<T>(v, -rate, product, args_.size, v);
    }
  }

  // d of the parameters of a mask, and zero for the others.
  void compare(const T* v, const T* g, const int64_t* mask, T* d) const {
    double sums[2] = {};  // <g, v> and |g|^2
    if (!scales_only(args_))
      each_param([&](int64_t i, int64_t from, int64_t size) {
        if (mask[i]) add_products(g + from, v + from, size, sums);
      });
    const double cosine = args_.lam_c != 0 && sums[1] > 0 ? args_.lam_c * sums[0] / sums[1] : 0;
    const T total = static_cast<T>(args_.lam_d + args_.lam_c + args_.lam_2);
    const T along = static_cast<T>(args_.lam_2 + cosine);
    each_param([&](int64_t i, int64_t from, int64_t size) {
      if (!mask[i])
        memset(d + from, 0, sizeof(T) * size);
      else if (scales_only(args_))
        memcpy(d + from, v + from, sizeof(T) * size);
      else
        for (int64_t j = from; j < from + size; ++j) d[j] = total * v[j] - along * g[j];
    });
  }

  // Calls body(index, offset, size) for all parameters.
  template <class Body>
  void each_param(const Body& body) const {
    int64_t from = 0;
    for (int64_t i = 0; i < args_.count; from += args_.sizes[i++]) body(i, from, args_.sizes[i]);
  }

  T differentiate(const Evaluation<T>& e, T* grad) const {
    if (has_sets()) memset(grad, 0, sizeof(T) * args_.size);
    return backward(e, grad);
  }
  // Whether an evaluation leaves some parameters unused.
  bool has_sets() const {
    return std::any_of(args_.layers, args_.layers + args_.depth,
                       [](const SequenceLayer& layer) { return layer.sets > 1; });
  }

  void scale(T* values, T factor) const {
    for (int64_t i = 0; i < args_.size; ++i) values[i] *= factor;
  }

  const T* images(const SequenceExamples& all, int64_t task) const {
    return static_cast<const T*>(all.x) + task * all.n * args_.layers[0].in.size();
  }
  // Those of a task with channels last, unless they are.
  void copy_images(const SequenceExamples& all, int64_t task, T* to) const {
    if (!all.channels_first) return;
    const LayerMap& map = args_.layers[0].in;
    const T* from = images(all, task);
    parallel_(all.n, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        transpose<T>(
            map.c, map.h * map.w, map.c,
            [&](int64_t c) { return from + i * map.row + c * map.h * map.w; },
            [&](int64_t pixel) { return to + i * map.row + pixel * map.c; });
    });
  }

  T* at(int64_t offset) const { return memory_ + offset; }
  // Fast weights before inner step k; first order keeps the latest only.
  const T* theta(int64_t k) const {
    return k ? theta_after(k - 1) : static_cast<const T*>(args_.params);
  }
  T* theta_after(int64_t k) const { return at(plan_.theta + (plan_.kept ? k : 0) * plan_.size); }
  // Whether the sweep compares v with the inner gradients, which then are kept.
  bool compares() const { return plan_.kept && !scales_only(args_); }
  T* gradient(int64_t k) const { return at(plan_.gradients + k * plan_.size); }

  Evaluation<T> at_step(int64_t task, int64_t k) const {
    Evaluation<T> support = evaluation(args_.support, at(plan_.images[0]), task, k);
    if (!plan_.kept) return support;
    const int64_t n = support.n;
    support.values = at(plan_.tapes + k * plan_.tape);
    support.kept = support.values + n * plan_.maps;
    support.softmax = support.kept + n * plan_.deltas;
    support.deltas = at(plan_.values);
    if (support.second) support.second = at(plan_.values + n * plan_.maps);
    return support;
  }
  Evaluation<T> at_query(int64_t task) const {
    Evaluation<T> query = evaluation(args_.query, at(plan_.images[1]), task, args_.steps);
    query.step = kAdapted;
    return query;
  }
  // One that is not kept: gradients replace values.
  Evaluation<T> evaluation(const SequenceExamples& all, const T* copies, int64_t task,
                           int64_t k) const {
    T* values = at(plan_.values);
    T* second = plan_.dropped > 1 ? values + all.n * plan_.third : nullptr;
    const int64_t target = args_.loss == Loss::cross_entropy ? static_cast<int64_t>(sizeof(int64_t))
                                                             : args_.layers[args_.depth - 1].out.c *
                                                                   static_cast<int64_t>(sizeof(T));
    return {args_,
            k,
            theta(k),
            all.channels_first ? copies : images(all, task),
            static_cast<const char*>(all.y) + task * all.n * target,
            all.n,
            values,
            values,
            nullptr,
            plan_.lowest,
            at(plan_.probabilities),
            plan_.dropped ? at(plan_.again) : nullptr,
            plan_.part,
            second,
            keeps_extremes(args_) ? at(plan_.extremes) : nullptr,
            static_cast<T*>(args_.stats) + (task * (args_.steps + 1) + k) * args_.stats_size,
            at(plan_.scratch),
            at(plan_.low_scratch),
            parallel_};
  }

  void write_output(const Evaluation<T>& e, int64_t task) const {
    const LayerMap& out = args_.layers[args_.depth - 1].out;
    T* to = static_cast<T*>(args_.query_output) + task * e.n * out.c;
    const T* from = e.value(args_.depth - 1);
    for (int64_t i = 0; i < e.n; ++i) memcpy(to + i * out.c, from + i * out.row, sizeof(T) * out.c);
  }

  const SequenceArgs& args_;
  const SequencePlan& plan_;
  T* memory_;
  const Parallel& parallel_;
};

template <class T>
void step(const SequenceArgs& args, const Parallel& parallel) {
  const SequencePlan plan = plan_sequence(args);
  if (args.workers == 1) {  // its kernels run on all threads
    const Worker<T> worker(args, plan, 0, parallel);
    for (int64_t task = 0; task < args.tasks; ++task) worker.run(task);
    return;
  }
  const Parallel serial(run_serially);
  std::atomic<int64_t> next{0};
  parallel(args.workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t number = begin; number < end; ++number) {
      const Worker<T> worker(args, plan, number, serial);
      for (int64_t task = next++; task < args.tasks; task = next++) worker.run(task);
    }
  });
}

}  // namespace

void sequence_step(const SequenceArgs& args, const Parallel& parallel) {
  if (args.dtype == DType::f64)
    step<double>(args, parallel);
  else
    step<float>(args, parallel);
}

}  // namespace fastmeta::cpu::FM_ISA
