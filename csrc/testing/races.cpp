// The CPU kernels on several threads, without torch and Python, for ThreadSanitizer: see
// .ci/sanitize. Each runs on one thread and on several, with bitwise equal results. With an
// argument, runs a planted race instead.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <thread>
#include <vector>

#include "cpu/kernels.h"
#include "fastmeta/pack.h"
#include "fastmeta/sequence_plan.h"

namespace fastmeta {
namespace {

constexpr int64_t kThreads = 4;
int64_t max_threads = 0;  // of any loop since it was set to 0
bool failed = false;

void run_on_threads(int64_t begin, int64_t end, int64_t grain, Parallel::Range range,
                    void* context) {
  const int64_t each = std::max({(end - begin + kThreads - 1) / kThreads, grain, int64_t{1}});
  std::vector<std::thread> threads;
  for (int64_t from = begin; from < end; from += each)
    threads.emplace_back(range, from, std::min(from + each, end), context);
  for (std::thread& thread : threads) thread.join();
  max_threads = std::max(max_threads, static_cast<int64_t>(threads.size()));
}

struct Memory {
  void* data;
  size_t bytes;
};

template <class T>
Memory memory(std::vector<T>& values) {
  return {values.data(), values.size() * sizeof(T)};
}

void check(const char* name, const std::vector<Memory>& outputs,
           const std::function<void(const Parallel&)>& kernel) {
  const auto run = [&](const Parallel& parallel) {
    for (const Memory& out : outputs) std::memset(out.data, 0xff, out.bytes);
    kernel(parallel);
  };
  run(Parallel(run_serially));
  std::vector<std::vector<unsigned char>> serial;
  for (const Memory& out : outputs) {
    const auto* bytes = static_cast<const unsigned char*>(out.data);
    serial.emplace_back(bytes, bytes + out.bytes);
  }
  max_threads = 0;
  run(Parallel(run_on_threads));
  bool same = true;
  for (size_t k = 0; k < outputs.size(); ++k)
    same = same && !std::memcmp(outputs[k].data, serial[k].data(), outputs[k].bytes);
  std::printf("%s: %d threads, %s bits\n", name, static_cast<int>(max_threads),
              same ? "the same" : "OTHER");
  failed = failed || !same || max_threads < 2;  // a single thread shows no races
}

template <class T>
std::vector<T> numbers(int64_t count) {
  static std::mt19937 random(1);
  std::normal_distribution<double> normal;
  std::vector<T> values(count);
  for (T& value : values) value = static_cast<T>(normal(random));
  return values;
}

template <class T>
constexpr DType kDType = sizeof(T) == 8 ? DType::f64 : DType::f32;

// The ops on (tasks, columns) buffers.
template <class T>
void check_rows(const cpu::Kernels& kernels) {
  constexpr int64_t kTasks = 6, kColumns = 100'003, kSize = kTasks * kColumns;
  const int64_t bounds[] = {0, 30'000, 30'000, kColumns};
  const int64_t ends[] = {0, kColumns};
  const Segments parts{bounds, 3}, one{ends, 1};
  std::vector<T> a = numbers<T>(kSize), b = numbers<T>(kSize), c = numbers<T>(kSize);
  std::vector<T> eps = numbers<T>(kTasks), alpha = numbers<T>(kColumns);
  std::vector<T> coef = numbers<T>(kTasks * 3 * 2), x(kSize), y(kSize), rest(kSize), more(kSize);
  const Matrix rows{a.data(), kTasks, kColumns, kColumns},
      others{b.data(), kTasks, kColumns, kColumns};
  std::vector<double> partial(count_chunks(parts, kColumns, kCpuChunking) * kTasks * kTasks);

  check("gram", {memory(x)}, [&](const Parallel& p) {
    kernels.gram({kDType<T>, rows, parts, partial.data(), x.data()}, p);
  });
  check("row_similarity", {memory(x)}, [&](const Parallel& p) {
    kernels.row_similarity({kDType<T>, rows, others, parts, partial.data(), x.data()}, p);
  });
  check("mean_similarity", {memory(x)}, [&](const Parallel& p) {
    kernels.mean_similarity({kDType<T>, rows, partial.data(), x.data()}, p);
  });
  check("combine", {memory(x)}, [&](const Parallel& p) {
    void* out = x.data();
    kernels.combine({kDType<T>, {rows, others}, 2, coef.data(), parts, &out, one}, p);
  });
  check("inner_step", {memory(x)}, [&](const Parallel& p) {
    const StepItem items[] = {
        {a.data(), b.data(), eps.data(), x.data(), kSize / 2, false, false},
        {a.data(), b.data(), c.data(), x.data() + kSize / 2, kSize / 3, true, false},
        {a.data(), b.data(), eps.data(), x.data() + kSize / 2 + kSize / 3, kSize / 6, false, true}};
    kernels.inner_step({kDType<T>, items, 3}, p);
  });
  check("adamw_step", {memory(x), memory(y)}, [&](const Parallel& p) {
    const AdamwItem items[] = {
        {{a.data(), b.data(), c.data(), b.data()}, {x.data(), y.data(), rest.data()}, kSize}};
    kernels.adamw_step({kDType<T>, {0.99, 0.1, 0.9, 0.1, 0.99, 0.01, 0.5, 1e-8}, items, 1}, p);
  });
  check("adamw_adjoint", {memory(x), memory(y), memory(rest)}, [&](const Parallel& p) {
    const AdamwItem items[] = {{{a.data(), b.data(), c.data(), c.data(), b.data(), a.data()},
                                {x.data(), y.data(), rest.data(), more.data()},
                                kSize}};
    kernels.adamw_adjoint({kDType<T>, {0.99, 0.1, 0.9, 0.1, 0.99, 0.01, 0.5, 1e-8}, items, 1}, p);
  });
  check("hvp_perturb", {memory(x), memory(y)}, [&](const Parallel& p) {
    kernels.hvp_perturb(
        {kDType<T>, kTasks, kColumns, a.data(), b.data(), eps.data(), x.data(), y.data()}, p);
  });
  check("hvp_difference", {memory(x)}, [&](const Parallel& p) {
    kernels.hvp_difference({kDType<T>, kTasks, kColumns, a.data(), b.data(), c.data(), eps.data(),
                            alpha.data(), true, x.data()},
                           p);
  });
  check("pack", {memory(x)}, [&](const Parallel& p) {
    const int64_t first = kSize / 3 * sizeof(T), rest = kSize * sizeof(T) - first;
    const Copy copies[] = {{a.data(), x.data(), first}, {b.data(), x.data() + kSize / 3, rest}};
    cpu::pack(copies, 2, p);
  });
}

// Few channels are convolved directly, many by Winograd's algorithm at stride 1.
template <class T>
void check_conv(const cpu::Kernels& kernels, int64_t channels, int64_t stride) {
  constexpr int64_t kGroups = 2, kEach = 6, kSide = 21, kOut = 17;
  const ConvShape shape{kDType<T>, kGroups, kEach, kSide, kSide, channels, kOut, stride};
  const int64_t images = kGroups * kEach, weights = kGroups * kOut * channels * 9;
  std::vector<T> x = numbers<T>(images * kSide * kSide * channels), weight = numbers<T>(weights);
  std::vector<T> bias = numbers<T>(kGroups * kOut);
  std::vector<T> dy = numbers<T>(images * shape.out_h() * shape.out_w() * kOut);
  std::vector<T> y(dy.size()), dx(x.size()), d_weight(weight.size()), d_bias(bias.size());
  check("conv_forward", {memory(y)}, [&](const Parallel& p) {
    kernels.conv_forward({shape, x.data(), weight.data(), bias.data(), y.data()}, p);
  });
  check("conv_input", {memory(dx)}, [&](const Parallel& p) {
    kernels.conv_input({shape, dy.data(), weight.data(), dx.data()}, p);
  });
  check("conv_weight", {memory(d_weight), memory(d_bias)}, [&](const Parallel& p) {
    kernels.conv_weight({shape, x.data(), dy.data(), d_weight.data(), d_bias.data()}, p);
  });
}

template <class T>
void check_norm(const cpu::Kernels& kernels, bool pool) {
  constexpr int64_t kGroups = 2, kEach = 6, kSide = 21, kChannels = 19;
  constexpr int64_t kImages = kGroups * kEach, kOut = kGroups * kChannels;
  const int64_t side = pool ? kSide / 2 : kSide;
  std::vector<T> x = numbers<T>(kImages * kSide * kSide * kChannels), u = numbers<T>(x.size());
  std::vector<T> weight = numbers<T>(kOut), bias = numbers<T>(kOut);
  std::vector<T> dz = numbers<T>(kImages * side * side * kChannels);
  std::vector<T> z(dz.size()), mean(kOut), var(kOut), dx(x.size()), d_weight(kOut), d_bias(kOut);
  const NormInput in{kDType<T>, kGroups, kEach,    kChannels,     kSide,      kSide,
                     1e-3,      pool,    x.data(), weight.data(), bias.data()};
  check("norm_forward", {memory(z), memory(mean), memory(var)}, [&](const Parallel& p) {
    kernels.norm_forward({in, z.data(), mean.data(), var.data()}, p);
  });
  check("norm_backward", {memory(dx), memory(d_weight), memory(d_bias)}, [&](const Parallel& p) {
    kernels.norm_backward(
        {in, mean.data(), var.data(), dz.data(), dx.data(), d_weight.data(), d_bias.data()}, p);
  });
  check("norm_second", {memory(z), memory(dx), memory(d_weight)}, [&](const Parallel& p) {
    kernels.norm_second({in, mean.data(), var.data(), dz.data(), u.data(), weight.data(),
                         bias.data(), z.data(), dx.data(), d_weight.data()},
                        p);
  });
}

// Six heads of queries share two of keys and values.
template <class T>
void check_attention(const cpu::Kernels& kernels) {
  constexpr int64_t kHeads = 6, kShared = 2, kQueries = 150, kKeys = 120, kWidth = 20;
  const auto queries = [] { return numbers<T>(kHeads * kQueries * kWidth); };
  const auto keys = [] { return numbers<T>(kShared * kKeys * kWidth); };
  const auto heads = [](const std::vector<T>& values, int64_t rows) {
    return Heads{values.data(), 0, rows * kWidth, kWidth};
  };
  const std::vector<T> q = queries(), k = keys(), v = keys();
  const std::vector<T> tq = queries(), tk = keys(), tv = keys(), dout = queries();
  std::vector<T> out = queries(), stats(kHeads * 2 * kQueries), tout = queries();
  std::vector<T> dq = queries(), dk = keys(), dv = keys();
  const AttentionInput in{
      kDType<T>, 1,           kHeads, kShared, kQueries,           kKeys,           kWidth,
      kWidth,    true,        100,    0.2,     heads(q, kQueries), heads(k, kKeys), heads(v, kKeys),
      {},        stats.data()};
  std::vector<T> scratch(attention_scratch(in, kAttentionSecondRows));
  check("attention_forward", {memory(out), memory(stats)},
        [&](const Parallel& p) { kernels.attention_forward({in, out.data()}, p); });
  check("attention_backward", {memory(dq), memory(dk), memory(dv)}, [&](const Parallel& p) {
    kernels.attention_backward({in, heads(dout, kQueries), heads(out, kQueries), scratch.data(),
                                dq.data(), dk.data(), dv.data()},
                               p);
  });
  const AttentionTangentArgs tangent{
      in,         heads(tq, kQueries), heads(tk, kKeys), heads(tv, kKeys), heads(out, kQueries),
      tout.data()};
  check("attention_tangent", {memory(tout)},
        [&](const Parallel& p) { kernels.attention_tangent(tangent, p); });
  check("attention_second", {memory(tout), memory(dq), memory(dk), memory(dv)},
        [&](const Parallel& p) {
          kernels.attention_second(
              {tangent, heads(dout, kQueries), {}, scratch.data(), dq.data(), dk.data(), dv.data()},
              p);
        });
}

template <class T>
void check_block(const cpu::Kernels& kernels) {
  constexpr int64_t kGroups = 2, kRows = 150, kWidth = 37, kCount = kGroups * kRows * kWidth;
  const std::vector<T> x = numbers<T>(kCount), dy = numbers<T>(kCount), tdy = numbers<T>(kCount);
  const std::vector<T> tx = numbers<T>(kCount), weight = numbers<T>(kGroups * kWidth);
  std::vector<T> stats(kGroups * 2 * kRows), y(kCount), dx(kCount), d_weight(kGroups * kWidth);
  std::vector<T> d_bias(d_weight.size());
  const RowNormInput in{kDType<T>, kDType<T>, kGroups,       kRows,       kWidth,
                        true,      x.data(),  weight.data(), stats.data()};
  std::vector<T> scratch(row_norm_scratch(in));
  check("row_norm_forward", {memory(y), memory(stats)}, [&](const Parallel& p) {
    kernels.row_norm_forward({in, 1e-3, weight.data(), y.data()}, p);
  });
  check("row_norm_backward", {memory(dx), memory(d_weight), memory(d_bias)},
        [&](const Parallel& p) {
          kernels.row_norm_backward(
              {in, dy.data(), scratch.data(), dx.data(), d_weight.data(), d_bias.data()}, p);
        });
  check("row_norm_second", {memory(y), memory(dx), memory(d_weight), memory(d_bias)},
        [&](const Parallel& p) {
          kernels.row_norm_second(
              {in, dy.data(), tdy.data(), tx.data(), weight.data(), weight.data(), scratch.data(),
               y.data(), dx.data(), d_weight.data(), d_bias.data()},
              p);
        });
  constexpr Activation kGelu = Activation::gelu;
  check("activation_forward", {memory(y)}, [&](const Parallel& p) {
    kernels.activation_forward({kDType<T>, kGelu, kCount, x.data(), y.data()}, p);
  });
  check("activation_backward", {memory(dx)}, [&](const Parallel& p) {
    kernels.activation_backward({kDType<T>, kGelu, kCount, x.data(), dy.data(), dx.data()}, p);
  });
  check("activation_second", {memory(y), memory(dx)}, [&](const Parallel& p) {
    kernels.activation_second(
        {kDType<T>, kGelu, kCount, x.data(), dy.data(), tdy.data(), tx.data(), y.data(), dx.data()},
        p);
  });
  constexpr int64_t kLogits = kGroups * kRows;
  std::vector<T> loss(kLogits), logsumexp(kLogits);
  const std::vector<int64_t> target(kLogits, 3);
  const CrossEntropyInput logits{kDType<T>,     kLogits, kWidth, x.data(),
                                 target.data(), -100,    0.1,    logsumexp.data()};
  check("cross_entropy_forward", {memory(loss), memory(logsumexp)},
        [&](const Parallel& p) { kernels.cross_entropy_forward({logits, loss.data()}, p); });
  check("cross_entropy_backward", {memory(dx)}, [&](const Parallel& p) {
    kernels.cross_entropy_backward({logits, dy.data(), dx.data()}, p);
  });
  check("cross_entropy_second", {memory(loss), memory(dx)}, [&](const Parallel& p) {
    kernels.cross_entropy_second({logits, dy.data(), tdy.data(), tx.data(), loss.data(), dx.data()},
                                 p);
  });
}

template <class T>
void check_mlp(const cpu::Kernels& kernels) {
  constexpr int64_t kTasks = 8, kIn = 5, kHidden = 33, kOut = 3, kShots = 7;
  constexpr int64_t kSize = kHidden * (kIn + 1) + kOut * (kHidden + 1);
  const std::vector<T> params = numbers<T>(kSize);
  const T* first = params.data();
  const T* second = first + kHidden * (kIn + 1);
  const MlpLayer layers[] = {{kIn, kHidden, first, first + kHidden * kIn, Activation::tanh},
                             {kHidden, kOut, second, second + kOut * kHidden, Activation::relu}};
  std::vector<T> x = numbers<T>(kTasks * kShots * kIn), y = numbers<T>(kTasks * kShots * kOut);
  std::vector<T> rows(kTasks * kSize), inner(rows.size()), before(kTasks), after(kTasks);
  std::vector<T> output(y.size());
  const MlpExamples examples{x.data(), y.data(), kShots};
  const int64_t masks[] = {0, 1, 1, 1};  // the head in the first inner step, then both layers
  check("mlp_step", {memory(rows), memory(inner), memory(before), memory(after), memory(output)},
        [&](const Parallel& p) {
          kernels.mlp_step(
              {kDType<T>, layers, 2, Loss::mse, kTasks, examples, examples, 0.01, 3, masks, 2, 0.7,
               0.4, 0.3, rows.data(), inner.data(), before.data(), after.data(), output.data()},
              p);
        });
}

template <class T>
void check_sequence(const cpu::Kernels& kernels) {
  constexpr int64_t kTasks = 8, kShots = 5, kSize = 7, kChannels = 20, kOut = 3;
  const LayerMap image{2, kSize, kSize, 2 * kSize * kSize};
  const LayerMap wide{kChannels, kSize, kSize, kChannels * kSize * kSize};
  const LayerMap pooled{kChannels, 3, 3, 9 * kChannels}, outputs{kOut, 1, 1, 16};
  const int64_t sizes[] = {18 * kChannels, kChannels, kChannels, kChannels, 9 * kChannels * kOut};
  const int64_t at[] = {0, 18 * kChannels, 19 * kChannels, 20 * kChannels, 21 * kChannels};
  const SequenceLayer layers[] = {
      {LayerKind::conv, 1, 0, at[0], at[1], 1, 0, image, wide, 0, 0},
      {LayerKind::norm, 1, 1e-5, at[2], at[3], 1, 2, wide, pooled, wide.row, 0},
      {LayerKind::linear, 0, 0, at[4], -1, 1, 4, pooled, outputs, wide.row + pooled.row, 0}};
  const std::vector<T> params = numbers<T>(at[4] + sizes[4]);
  const std::vector<T> x = numbers<T>(kTasks * kShots * image.row);
  const std::vector<T> y = numbers<T>(kTasks * kShots * kOut);
  std::vector<T> rows(kTasks * params.size()), before(kTasks), after(kTasks), output(y.size());
  std::vector<T> stats(kTasks * 3 * 2 * kChannels);
  const SequenceExamples examples{x.data(), y.data(), kShots};
  const int64_t masks[] = {1, 1, 1, 1, 1};
  SequenceArgs args{};
  args.dtype = kDType<T>;
  args.layers = layers;
  args.depth = 3;
  args.loss = Loss::mse;
  args.tasks = kTasks;
  args.support = args.query = examples;
  args.params = params.data();
  args.size = static_cast<int64_t>(params.size());
  args.sizes = sizes;
  args.count = 5;
  args.lr = 0.01;
  args.steps = 2;
  args.differentiated = masks;
  args.masks = 1;
  args.lam_d = 1;
  args.workers = kThreads;
  args.rows = rows.data();
  args.support_loss = before.data();
  args.query_loss = after.data();
  args.query_output = output.data();
  args.stats = stats.data();
  args.stats_size = 2 * kChannels;
  std::vector<T> workspace(kThreads * plan_sequence(args).total);
  args.memory = workspace.data();
  check("sequence_step",
        {memory(rows), memory(before), memory(after), memory(output), memory(stats)},
        [&](const Parallel& p) { kernels.sequence_step(args, p); });
}

template <class T>
void check_head(const cpu::Kernels& kernels) {
  constexpr int64_t kTasks = 8, kShots = 33, kClasses = 9, kWidth = 301;
  constexpr int64_t kHead = kTasks * kClasses * kWidth, kOutputs = kTasks * kShots * kClasses;
  const std::vector<T> x = numbers<T>(kTasks * kShots * kWidth), z = numbers<T>(kOutputs);
  const std::vector<T> weight = numbers<T>(kHead), v = numbers<T>(kHead);
  const std::vector<T> v_bias = numbers<T>(kTasks * kClasses);
  std::vector<int64_t> y(kTasks * kShots);
  for (size_t i = 0; i < y.size(); ++i) y[i] = static_cast<int64_t>(i % kClasses);
  std::vector<T> g(kHead), g_bias(v_bias.size()), stats(kTasks * 3), dx(x.size()), d_weight(kHead);
  std::vector<T> d_bias(v_bias.size());
  check("head_similarity",
        {memory(g), memory(g_bias), memory(stats), memory(dx), memory(d_weight), memory(d_bias)},
        [&](const Parallel& p) {
          kernels.head_similarity({kDType<T>,     Loss::cross_entropy,
                                   kTasks,        kShots,
                                   kClasses,      kWidth,
                                   x.data(),      z.data(),
                                   y.data(),      weight.data(),
                                   v.data(),      v_bias.data(),
                                   0.7,           0.4,
                                   0.2,           g.data(),
                                   g_bias.data(), stats.data(),
                                   dx.data(),     d_weight.data(),
                                   d_bias.data()},
                                  p);
        });
}

template <class T>
void check_all(const cpu::Kernels& kernels) {
  check_rows<T>(kernels);
  for (int64_t channels : {3, 19})
    for (int64_t stride : {1, 2}) check_conv<T>(kernels, channels, stride);
  for (bool pool : {false, true}) check_norm<T>(kernels, pool);
  check_attention<T>(kernels);
  check_block<T>(kernels);
  check_mlp<T>(kernels);
  check_sequence<T>(kernels);
  check_head<T>(kernels);
}

// Unsynchronised writes to one sum.
void race() {
  double sum = 0;
  const std::vector<double> values = numbers<double>(1000);
  const Parallel threads(run_on_threads);
  threads(1000, 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) sum += values[k];
  });
  std::printf("sum: %g\n", sum);
}

}  // namespace
}  // namespace fastmeta

int main(int count, char**) {
  using namespace fastmeta;
  if (count > 1) {
    race();
    return 0;
  }
  const cpu::Kernels* kernels = cpu::kernels_for("baseline");
  check_all<float>(*kernels);
  check_all<double>(*kernels);
  return failed;
}
