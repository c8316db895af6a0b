#include "cuda/adamw.cuh"
#include "cuda/stream.h"

namespace fastmeta::cuda {

int adamw_step(const AdamwArgs& args, void* stream) {
  return on_stream(stream, [&](const auto& launch) { launch_adamw_step(args, launch); });
}

int adamw_adjoint(const AdamwArgs& args, void* stream) {
  return on_stream(stream, [&](const auto& launch) { launch_adamw_adjoint(args, launch); });
}

}  // namespace fastmeta::cuda
