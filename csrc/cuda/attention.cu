#include "cuda/attention_launch.cuh"
#include "cuda/stream.h"

namespace fastmeta::cuda {

int attention_forward(const AttentionForwardArgs& args, void* stream) {
  return on_stream(stream, [&](const auto& launch) { launch_attention_forward(args, launch); });
}

int attention_backward(const AttentionBackwardArgs& args, void* stream) {
  return on_stream(stream, [&](const auto& launch) { launch_attention_backward(args, launch); });
}

int attention_tangent(const AttentionTangentArgs& args, void* stream) {
  return on_stream(stream, [&](const auto& launch) { launch_attention_tangent(args, launch); });
}

int attention_second(const AttentionSecondArgs& args, void* stream) {
  return on_stream(stream, [&](const auto& launch) { launch_attention_second(args, launch); });
}

}  // namespace fastmeta::cuda
