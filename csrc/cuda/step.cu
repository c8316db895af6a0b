#include "cuda/step.cuh"
#include "cuda/stream.h"

namespace fastmeta::cuda {

int inner_step(const StepArgs& args, void* stream) {
  return on_stream(stream, [&](const auto& launch) { launch_inner_step(args, launch); });
}

int hvp_perturb(const PerturbArgs& args, void* stream) {
  return on_stream(stream, [&](const auto& launch) { launch_hvp_perturb(args, launch); });
}

int hvp_difference(const DifferenceArgs& args, void* stream) {
  return on_stream(stream, [&](const auto& launch) { launch_hvp_difference(args, launch); });
}

}  // namespace fastmeta::cuda
