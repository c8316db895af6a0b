// Task weights and GSL coefficients from the similarity scalars; tiny, but kept on the device so
// that no step waits for the host.
#pragma once

#include "fastmeta/platform.h"

namespace fastmeta {

// Comparisons are written so that NaN propagates: bad gradients must be seen, not weighted.

enum class Magnitude : int { none, norm_match, ratio, clip };
enum class TaskWeight : int { agreement, gsl_linear, gsl_softmax };

struct GslHyper {
  double lam_c;
  double lam_2;
  Magnitude magnitude;
  double ratio;
  double eps;    // added to |d| before dividing
  double noise;  // norm relative to the whole gradient's up to which a segment counts as zero
};

template <class A>
struct Pair {
  A u;
  A v;
};

// The gradient of the GSL loss lam_c (1 - cos(u, v)) + lam_2/2 |u - v|^2 with respect to u is
// p u + q v.
// A zero vector has no direction: its cosine term is constant and contributes nothing.
template <class A>
FM_HD Pair<A> gsl_gradient(A dot, A uu, A vv, A lam_c, A lam_2) {
  const A norms = sqrt(uu) * sqrt(vv);
  if (norms == A(0)) return {lam_2, -lam_2};
  return {lam_c * (dot / norms) / uu + lam_2, -(lam_c / norms + lam_2)};
}

// |d|^2 of d = p u + q v, as a sum of squares parallel and orthogonal to u: p and q cancel when u
// and v are nearly parallel. The sine is bounded below by the resolution of the scalars, so that
// scaling by 1/|d| does not amplify rounding errors.
template <class A>
FM_HD A gsl_squared_norm(A dot, A uu, A vv, A lam_c, A lam_2) {
  const A u = sqrt(uu), v = sqrt(vv);
  const A norms = u * v;
  if (norms == A(0)) return lam_2 * lam_2 * (uu + vv);
  const A min_sine2 = A(8) * (sizeof(A) == 8 ? A(2.220446049250313e-16) : A(1.1920929e-07));
  const A cosine = dot / norms;
  A sine2 = A(1) - cosine * cosine;
  sine2 = sine2 < min_sine2 ? min_sine2 : sine2;
  const A along = lam_2 * (u - cosine * v), across = lam_c / u + lam_2 * v;
  return along * along + sine2 * across * across;
}

// The factor of d ("adjustment of AHE gradient magnitude" in the papers).
template <class A>
FM_HD A gsl_scale(A uu, A squared_norm, Magnitude rule, A ratio, A eps) {
  if (rule == Magnitude::none) return A(1);
  const A full = sqrt(uu) / (sqrt(squared_norm) + eps);
  if (rule == Magnitude::norm_match) return full;
  if (rule == Magnitude::ratio) return ratio * full;
  return ratio * full > A(1) ? A(1) : ratio * full;
}

struct GslArgs {
  DType dtype;         // f32 or f64
  const void* stats;   // (T, S, 3): row_similarity of query (u) and support (v) gradients
  const void* weight;  // (T): multiplies each task's coefficients
  const void* rate;    // (1): schedule factor times eta
  int64_t rows;
  int64_t segments;
  GslHyper hyper;
  void* out;  // (T, S, 2)
};

// Whether the query or the support gradient of a segment is zero up to rounding of the whole one,
// so that its direction means nothing. stats are those of all segments of a task.
template <class A>
FM_HD bool gsl_is_noise(const A* stats, int64_t segments, int64_t segment, A noise) {
  A uu = A(0), vv = A(0);
  for (int64_t s = 0; s < segments; ++s) {
    uu += stats[3 * s + 1];
    vv += stats[3 * s + 2];
  }
  const A part = noise * noise;
  return stats[3 * segment + 1] <= part * uu || stats[3 * segment + 2] <= part * vv;
}

// m_i = weight_i * (u_i - rate * scale * d_i), as coefficients of u_i and v_i. index counts the
// segments of all tasks.
template <class A>
FM_HD void gsl_coefficients_core(const GslArgs& args, int64_t index) {
  const GslHyper& hyper = args.hyper;
  const int64_t row = index / args.segments, segment = index % args.segments;
  const A* task = static_cast<const A*>(args.stats) + 3 * args.segments * row;
  const A dot = task[3 * segment], uu = task[3 * segment + 1], vv = task[3 * segment + 2];
  const bool noise = gsl_is_noise(task, args.segments, segment, static_cast<A>(hyper.noise));
  const A lam_c = noise ? A(0) : static_cast<A>(hyper.lam_c), lam_2 = static_cast<A>(hyper.lam_2);
  const A weight = static_cast<const A*>(args.weight)[row];
  const A rate = *static_cast<const A*>(args.rate);
  A* out = static_cast<A*>(args.out) + 2 * index;
  const Pair<A> d = gsl_gradient(dot, uu, vv, lam_c, lam_2);
  const A k = rate * gsl_scale(uu, gsl_squared_norm(dot, uu, vv, lam_c, lam_2), hyper.magnitude,
                               static_cast<A>(hyper.ratio), static_cast<A>(hyper.eps));
  out[0] = weight * (A(1) - k * d.u);
  out[1] = weight * -(k * d.v);
}

struct TaskWeightArgs {
  DType dtype;        // f32 or f64
  const void* stats;  // (T, 2): mean_similarity
  int64_t rows;
  TaskWeight rule;
  double lam_c;
  double lam_2;
  double tau;
  void* out;  // (T)
};

// GSL of task gradient i against their mean, from <g_i, s>, |g_i|^2 and |s|^2, s the sum of all T.
template <class A>
FM_HD A gsl_to_mean(A dot, A own, A total, A tasks, A lam_c, A lam_2) {
  const A norms = sqrt(own) * sqrt(total < A(0) ? A(0) : total);
  const A cosine = norms == A(0) ? A(0) : dot / norms;
  const A squared = own - A(2) * dot / tasks + total / (tasks * tasks);
  return lam_c * (A(1) - cosine) + lam_2 / A(2) * (squared < A(0) ? A(0) : squared);
}

// All T weights, in task order by one thread: T is small.
template <class A>
FM_HD void task_weights_core(const A* stats, int64_t rows, TaskWeight rule, A lam_c, A lam_2, A tau,
                             A* out) {
  A total = A(0);
  for (int64_t i = 0; i < rows; ++i) total += stats[2 * i];
  A min_loss = A(0);
  for (int64_t i = 0; i < rows; ++i) {
    A w = stats[2 * i];
    if (rule != TaskWeight::agreement) {
      const A loss = gsl_to_mean(stats[2 * i], stats[2 * i + 1], total, A(rows), lam_c, lam_2);
      w = rule == TaskWeight::gsl_linear ? A(1) - loss : loss / tau;
      if (i == 0 || w < min_loss) min_loss = w;
    }
    out[i] = w;
  }
  A norm = A(0);
  for (int64_t i = 0; i < rows; ++i) {
    if (rule == TaskWeight::gsl_softmax) out[i] = exp(min_loss - out[i]);
    norm += out[i] < A(0) ? -out[i] : out[i];
  }
  for (int64_t i = 0; i < rows; ++i) out[i] = norm == A(0) ? A(1) / A(rows) : out[i] / norm;
}

namespace cpu {
void gsl_coefficients(const GslArgs& args);
void task_weights(const TaskWeightArgs& args);
}  // namespace cpu
namespace cuda {
int gsl_coefficients(const GslArgs& args, void* stream);
int task_weights(const TaskWeightArgs& args, void* stream);
}  // namespace cuda

}  // namespace fastmeta
