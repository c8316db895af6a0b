// The gradient similarity loss of the last linear layer (the head) in closed form, for every task
// of a meta-batch: the head's support gradient g, its inner products with the query gradient v,
// which is held fixed, and the derivatives of <g, D> for a fixed direction D in the plane of both.
//
//   delta_i = dloss/dlogits_i        g = (sum_i delta_i x_i^T, sum_i delta_i)
//   D = total v - (l2 + cosine <g, v> / |g|^2) g,   total = inner_product + cosine + l2
//   r_i = D_W x_i + D_b              s_i = (ddelta_i/dlogits_i) r_i
//   d_features_i = D_W^T delta_i + W^T s_i,   d_weight = sum_i s_i x_i^T,   d_bias = sum_i s_i
#pragma once

#include "fastmeta/loss.h"
#include "fastmeta/parallel.h"
#include "fastmeta/platform.h"

namespace fastmeta {

// All buffers are contiguous.
struct HeadSimilarityArgs {
  DType dtype;
  Loss loss;
  int64_t tasks;
  int64_t n;                 // examples per task
  int64_t classes;           // outputs
  int64_t width;             // features
  const void* features;      // (tasks, n, width)
  const void* logits;        // (tasks, n, classes)
  const void* targets;       // (tasks, n, classes), or (tasks, n) int64 for cross-entropy
  const void* weight;        // (tasks, classes, width)
  const void* query_weight;  // (tasks, classes, width)
  const void* query_bias;    // (tasks, classes), or null: a head without a bias
  double inner_product;
  double cosine;
  double l2;
  void* grad_weight;  // (tasks, classes, width)
  void* grad_bias;    // (tasks, classes), or null without a bias
  void* similarity;   // (tasks, 3) of Acc<dtype>: <g, v>, |g|^2, |v|^2
  void* d_features;   // (tasks, n, width)
  void* d_weight;     // (tasks, classes, width)
  void* d_bias;       // (tasks, classes), or null without a bias
};

// D = total v - along g.
struct HeadDirection {
  double total;
  double along;
  bool has_gradient;  // otherwise not even a g that is not finite has a part in D

  FM_HD HeadDirection(const HeadSimilarityArgs& args, double dot, double square)
      : total(args.inner_product + args.cosine + args.l2),
        along(args.l2 + args.cosine * (square > 0 ? dot / square : 0.0)),
        has_gradient(args.cosine != 0 || args.l2 != 0) {}

  template <class A>
  FM_HD A of(A v, A g) const {
    const A scaled = static_cast<A>(total) * v;
    return has_gradient ? scaled - static_cast<A>(along) * g : scaled;
  }
};

}  // namespace fastmeta
