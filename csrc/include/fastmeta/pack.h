// pack: copy the gradients of T tasks x L tensors into the rows of one (T, P) buffer, and back.
// Both directions are lists of plain copies, done in one launch.
#pragma once

#include <cstdint>

#include "fastmeta/parallel.h"

namespace fastmeta {

struct Copy {
  const void* source;
  void* target;
  int64_t bytes;
};

namespace cpu {
void pack(const Copy* copies, int64_t count, const Parallel& parallel);
}
namespace cuda {
// Returns a cudaError_t; `stream` is a cudaStream_t.
int pack(const Copy* copies, int64_t count, void* stream);
}  // namespace cuda

}  // namespace fastmeta
