#include "cuda/stream.h"
#include "cuda/weights.cuh"

namespace fastmeta::cuda {

int gsl_coefficients(const GslArgs& args, void* stream) {
  return on_stream(stream, [&](const auto& launch) { launch_gsl_coefficients(args, launch); });
}

int task_weights(const TaskWeightArgs& args, void* stream) {
  return on_stream(stream, [&](const auto& launch) { launch_task_weights(args, launch); });
}

}  // namespace fastmeta::cuda
