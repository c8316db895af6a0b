#include "cuda/activation.cuh"
#include "cuda/stream.h"

namespace fastmeta::cuda {

int activation_forward(const ActivationForwardArgs& args, void* stream) {
  return on_stream(stream, [&](const auto& launch) { launch_activation_forward(args, launch); });
}

int activation_backward(const ActivationBackwardArgs& args, void* stream) {
  return on_stream(stream, [&](const auto& launch) { launch_activation_backward(args, launch); });
}

int activation_second(const ActivationSecondArgs& args, void* stream) {
  return on_stream(stream, [&](const auto& launch) { launch_activation_second(args, launch); });
}

}  // namespace fastmeta::cuda
