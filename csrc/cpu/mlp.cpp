#include <algorithm>

#include "cpu/arena.h"
#include "cpu/kernels.h"
#include "cpu/mlp_loss.h"

namespace fastmeta::cpu::FM_ISA {
namespace {

using namespace mlp;

template <class T>
Network describe(const MlpArgs& args) {
  Network net;
  net.loss = args.loss;
  for (int64_t l = 0; l < args.count; ++l) {
    const MlpLayer& from = args.layers[l];
    const int64_t row = padded<T>(from.out);
    net.layers.push_back({from.in, from.out, row, net.by_input, net.by_output, net.units,
                          from.bias != nullptr, from.activation});
    net.by_input += (from.in + 1) * row;
    const int64_t by_output = from.out * padded<T>(from.in);
    if (l > 0) net.by_output += by_output;
    net.largest = std::max(net.largest, by_output);
    net.units += row;
    net.max_width = std::max(net.max_width, row);
  }
  return net;
}

template <class T>
void order_by_output(const Network& net, const Weights<T>& w) {
  for (size_t l = 1; l < net.layers.size(); ++l) {
    const Layer& layer = net.layers[l];
    transpose(w.by_input + layer.by_input, layer.in, layer.out, w.by_output + layer.by_output);
  }
}

// The initialisation, shared by all tasks, in the padded layout.
template <class T>
void read_weights(const MlpArgs& args, const Network& net, const Weights<T>& w) {
  Arena<T> arena(net.largest);
  T* scratch = arena.take_zeros(net.largest);
  for (int64_t l = 0; l < args.count; ++l) {
    const Layer& layer = net.layers[l];
    const T* weight = static_cast<const T*>(args.layers[l].weight);
    for (int64_t o = 0; o < layer.out; ++o)
      memcpy(scratch + o * padded<T>(layer.in), weight + o * layer.in, sizeof(T) * layer.in);
    T* to = w.by_input + layer.by_input;
    transpose(scratch, layer.out, layer.in, to);
    if (layer.bias) memcpy(to + layer.in * layer.row, args.layers[l].bias, sizeof(T) * layer.out);
  }
  order_by_output(net, w);
}

// From the padded by-input layout to torch's dense one; scratch holds the largest layer.
template <class T>
void write_row(const Network& net, const T* by_input, T scale, T* scratch, T* row) {
  for (const Layer& layer : net.layers) {
    const T* from = by_input + layer.by_input;
    transpose(from, layer.in, layer.out, scratch);
    for (int64_t o = 0; o < layer.out; ++o) {
      const T* weight = scratch + o * padded<T>(layer.in);
      for (int64_t i = 0; i < layer.in; ++i) *row++ = scale * weight[i];
    }
    if (!layer.bias) continue;
    for (int64_t o = 0; o < layer.out; ++o) *row++ = scale * from[layer.in * layer.row + o];
  }
}

// to = from + scale * delta.
template <class T>
void add_scaled(const T* from, T scale, const T* delta, int64_t size, T* to) {
  for (int64_t i = 0; i < size; i += kLanes<T>)
    store(to + i, load(from + i) + scale * load(delta + i));
}

// Runs the meta-step of one task after the other in its own memory.
template <class T>
class Worker {
 public:
  Worker(const MlpArgs& args, const Network& net, const Weights<T>& start)
      : args_(args),
        net_(net),
        start_(start),
        max_examples_(std::max(args.support.n, args.query.n)),
        kept_(args.exact ? args.steps : std::min<int64_t>(args.steps, 1)),
        arena_((kept_ + 1) * (net.by_input + net.by_output) + 3 * net.by_input + net.largest +
               tapes() * 4 * tape_size() + 2 * tape_size() + max_examples_ * net.max_width) {
    for (int64_t k = 0; k < kept_; ++k) weights_.push_back(new_weights());
    for (int64_t k = 0; k < tapes(); ++k)
      tapes_.push_back({new_tape(), new_tape(), args.exact && k < args.steps ? new_tape() : nullptr,
                        new_tape()});
    direction_ = new_weights();
    grad_ = arena_.take_zeros(net.by_input);
    inner_ = arena_.take_zeros(net.by_input);
    scratch_ = arena_.take_zeros(net.largest);
    tangent_ = {new_tape(), new_tape(), arena_.take_zeros(max_examples_ * net.max_width)};
  }

  void run(int64_t task) {
    const Data<T> support = examples(args_.support, task), query = examples(args_.query, task);
    const T rate = static_cast<T>(args_.lr);
    if (args_.inner) memset(inner_, 0, sizeof(T) * net_.by_input);
    T first_loss = 0;
    for (int64_t k = 0; k < args_.steps; ++k) {
      const Weights<T>& w = weights(k);
      const T value = evaluate(w, support, tape(k), grad_);
      if (k == 0) first_loss = value;
      if (args_.inner) add_scaled<T>(inner_, 1, grad_, net_.by_input, inner_);
      const Weights<T>& next = weights(k + 1);
      add_scaled(w.by_input, -rate, grad_, net_.by_input, next.by_input);
      order_by_output(net_, next);
    }
    const T value = evaluate(weights(args_.steps), query, tape(args_.steps), direction_.by_input);
    write_output(tape(args_.steps), task);
    if (args_.exact) pull_back(support, rate);
    static_cast<T*>(args_.query_loss)[task] = value;
    static_cast<T*>(args_.support_loss)[task] = args_.steps ? first_loss : value;
    const int64_t size = row_size();
    write_row<T>(net_, direction_.by_input, 1, scratch_, static_cast<T*>(args_.rows) + task * size);
    if (args_.inner)
      write_row(net_, inner_, T(1) / static_cast<T>(args_.steps), scratch_,
                static_cast<T*>(args_.inner) + task * size);
  }

 private:
  // The reverse sweep: v <- v - lr H_k v from the last step to the first.
  void pull_back(const Data<T>& support, T rate) {
    for (int64_t k = args_.steps; k-- > 0;) {
      order_by_output(net_, direction_);
      r_forward(net_, weights(k), direction_, support, tape(k), tangent_);
      r_loss(net_, support, tape(k), tangent_);
      r_backward(net_, weights(k), direction_, support, tape(k), tangent_, grad_);
      add_scaled(direction_.by_input, -rate, grad_, net_.by_input, direction_.by_input);
    }
  }

  T evaluate(const Weights<T>& w, const Data<T>& data, const Tape<T>& tape, T* grad) {
    forward(net_, w, data, tape);
    const T value = loss(net_, data, tape);
    backward(net_, w, data, tape, grad);
    return value;
  }

  // After k inner steps; first order keeps the latest only.
  const Weights<T>& weights(int64_t k) const {
    return k == 0 ? start_ : weights_[args_.exact ? k - 1 : 0];
  }
  // Of the evaluation before inner step k, or of the query set. A tape always holds the same number
  // of examples, so its padding stays zero.
  const Tape<T>& tape(int64_t k) const {
    return tapes_[args_.exact || k < args_.steps ? (args_.exact ? k : 0) : 1];
  }
  int64_t tapes() const { return args_.exact ? args_.steps + 1 : 2; }

  Data<T> examples(const MlpExamples& all, int64_t task) const {
    const int64_t in = net_.layers[0].in;
    const int64_t target = args_.loss == Loss::cross_entropy
                               ? static_cast<int64_t>(sizeof(int64_t))
                               : net_.layers.back().out * static_cast<int64_t>(sizeof(T));
    return {static_cast<const T*>(all.x) + task * all.n * in,
            static_cast<const char*>(all.y) + task * all.n * target, all.n};
  }

  void write_output(const Tape<T>& tape, int64_t task) const {
    const Layer& last = net_.layers.back();
    const int64_t n = args_.query.n;
    T* to = static_cast<T*>(args_.query_output) + task * n * last.out;
    for (int64_t i = 0; i < n; ++i)
      memcpy(to + i * last.out, tape.out + n * last.units + i * last.row, sizeof(T) * last.out);
  }

  int64_t row_size() const {
    int64_t size = 0;
    for (const Layer& l : net_.layers) size += l.in * l.out + (l.bias ? l.out : 0);
    return size;
  }

  int64_t tape_size() const { return max_examples_ * net_.units; }
  T* new_tape() { return arena_.take_zeros(tape_size()); }
  Weights<T> new_weights() {
    T* by_input = arena_.take_zeros(net_.by_input);
    return {by_input, arena_.take_zeros(net_.by_output)};
  }

  const MlpArgs& args_;
  const Network& net_;
  const Weights<T>& start_;
  const int64_t max_examples_;  // per support or query set
  const int64_t kept_;          // sets of fast weights
  Arena<T> arena_;
  std::vector<Weights<T>> weights_;
  std::vector<Tape<T>> tapes_;
  Weights<T> direction_;
  T* grad_;
  T* inner_;
  T* scratch_;
  Tangent<T> tangent_;
};

template <class T>
void step(const MlpArgs& args, const Parallel& parallel) {
  const Network net = describe<T>(args);
  Arena<T> arena(net.by_input + net.by_output);
  T* by_input = arena.take_zeros(net.by_input);
  const Weights<T> start{by_input, arena.take_zeros(net.by_output)};
  read_weights(args, net, start);
  parallel(args.tasks, 1, [&](int64_t begin, int64_t end) {
    Worker<T> worker(args, net, start);
    for (int64_t task = begin; task < end; ++task) worker.run(task);
  });
}

}  // namespace

void mlp_step(const MlpArgs& args, const Parallel& parallel) {
  if (args.dtype == DType::f64)
    step<double>(args, parallel);
  else
    step<float>(args, parallel);
}

}  // namespace fastmeta::cpu::FM_ISA
