// cross_entropy: the cross entropy of the softmax of rows of logits z with class indices, with
// first and second derivatives. Per row, with p = softmax(z), q the target distribution
// ((1 - smoothing) for the class, plus smoothing / classes for each) and g the gradient of the
// loss:
//
//   forward    loss = logsumexp(z) - <q, z>, and logsumexp(z)
//   backward   dz = g (p - q)
//   second     along z. and, if given, g.: the tangents of the loss, <p - q, z.>, and of dz,
//                g p (z. - <p, z.>) + g. (p - q)
//
// All are zero for an ignored target, and NaN for an invalid one.
#pragma once

#include "fastmeta/parallel.h"
#include "fastmeta/platform.h"

namespace fastmeta {

struct CrossEntropyInput {
  DType dtype;
  int64_t rows;
  int64_t classes;
  const void* z;  // (rows, classes), contiguous like all below
  const int64_t* target;
  int64_t ignored;  // the target of rows that do not count
  double smoothing;
  void* logsumexp;  // (rows), in the accumulation dtype
};

struct CrossEntropyForwardArgs {
  CrossEntropyInput in;
  void* loss;  // as logsumexp
};

struct CrossEntropyBackwardArgs {
  CrossEntropyInput in;
  const void* dloss;  // as logsumexp
  void* dz;
};

struct CrossEntropySecondArgs {
  CrossEntropyInput in;
  const void* dloss;   // null: the tangent of the loss alone
  const void* tdloss;  // or null: zero
  const void* tz;
  void* tloss;  // or null
  void* dz;
};

// The factor of a row's results: 1, 0 if its target is ignored, NaN if it is invalid.
template <class A>
FM_HD A cross_entropy_factor(const CrossEntropyInput& in, int64_t row) {
  const int64_t y = in.target[row];
  if (y == in.ignored) return A(0);
  return y >= 0 && y < in.classes ? A(1) : bits_float(0x7fc00000u);
}

namespace cuda {
int cross_entropy_forward(const CrossEntropyForwardArgs& args, void* stream);
int cross_entropy_backward(const CrossEntropyBackwardArgs& args, void* stream);
int cross_entropy_second(const CrossEntropySecondArgs& args, void* stream);
}  // namespace cuda

}  // namespace fastmeta
