// Conversion of torch's stable tensors to the pointers, sizes and strides that kernels take.
#pragma once

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "fastmeta/matrix.h"
#include "fastmeta/parallel.h"
#include "fastmeta/platform.h"

namespace fastmeta {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;
using Ints = std::vector<int64_t>;

[[noreturn]] inline void fail(const std::string& message) {
  throw std::runtime_error("fastmeta: " + message);
}

// A macro, so that the message is only built when needed.
#define FM_REQUIRE(holds, message) \
  do {                             \
    if (!(holds)) fail(message);   \
  } while (false)

inline std::string shape_of(const Tensor& t) {
  std::string text = "(";
  for (int64_t d = 0; d < t.dim(); ++d) text += (d ? ", " : "") + std::to_string(t.size(d));
  return text + ")";
}

inline DType dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return DType::f32;
    case ScalarType::Double:
      return DType::f64;
    case ScalarType::Half:
      return DType::f16;
    case ScalarType::BFloat16:
      return DType::bf16;
    default:
      throw std::runtime_error(
          "fastmeta: tensors must be float32, float64, float16 or bfloat16. Convert them with "
          ".to().");
  }
}

inline ScalarType acc_type(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline int64_t element_size(const Tensor& t) {
  const DType d = dtype_of(t);
  return d == DType::f64 ? 8 : d == DType::f32 ? 4 : 2;
}

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index();
}

inline bool same_kind(const Tensor& a, const Tensor& b) {
  return a.scalar_type() == b.scalar_type() && same_device(a, b);
}

// Lists of sizes have no operator== before torch 2.13.
template <class Shape>
bool has_shape(const Tensor& t, const Shape& shape) {
  const auto sizes = t.sizes();
  return std::equal(sizes.begin(), sizes.end(), shape.begin(), shape.end());
}

inline Tensor dense(const Tensor& t) {
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

// A (T, P) tensor with dense rows, copied only if they are not.
inline Tensor dense_rows(const Tensor& t, const char* op) {
  FM_REQUIRE(t.dim() == 2, std::string(op) + ": expected a (tasks, parameters) matrix, got shape " +
                               shape_of(t) + ". Pack the gradients first (fastmeta.ops.pack).");
  return t.size(1) <= 1 || t.stride(1) == 1 ? t : torch::stable::contiguous(t);
}

inline Matrix matrix(const Tensor& t) {
  return {t.const_data_ptr(), t.size(0), t.size(1), t.stride(0)};
}

inline Segments segments(const Ints& bounds, int64_t cols, const char* op) {
  bool rising = bounds.size() >= 2 && bounds.front() == 0 && bounds.back() == cols;
  for (size_t k = 1; rising && k < bounds.size(); ++k) rising = bounds[k - 1] <= bounds[k];
  FM_REQUIRE(rising, std::string(op) +
                         ": segment bounds must rise from 0 to the number of columns, " +
                         std::to_string(cols) + ".");
  return {bounds.data(), static_cast<int64_t>(bounds.size()) - 1};
}

inline Chunking chunking_of(const Tensor& g) {
  return g.is_cuda() ? kCudaChunking : kCpuChunking;
}

// An uninitialised contiguous tensor on the device of `like`. Not by torch::stable::new_empty,
// which looks the operator up by name in each call (1.5 us).
inline Tensor empty(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef shape,
                    ScalarType dtype) {
  Ints strides(shape.size());
  int64_t stride = 1;
  for (size_t d = shape.size(); d-- > 0; stride *= std::max(shape[d], int64_t{1}))
    strides[d] = stride;
  int32_t device = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  const int32_t type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.data(),
                                                  strides.data(), type, device,
                                                  like.get_device_index(), &handle));
  return Tensor(handle);
}

inline Parallel torch_threads() {
  return Parallel(
      [](int64_t begin, int64_t end, int64_t grain, Parallel::Range range, void* context) {
        TORCH_ERROR_CODE_CHECK(torch_parallel_for(begin, end, grain, range, context));
      });
}

#if defined(FM_WITH_CUDA)
// libtorch_cuda is looked up at run time, so one binary serves CPU and CUDA builds of torch.
inline void* current_stream(int32_t device) {
  using Getter = AOTITorchError (*)(int32_t, void**);
  static const Getter getter = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return library ? reinterpret_cast<Getter>(dlsym(library, "aoti_torch_get_current_cuda_stream"))
                   : nullptr;
  }();
  void* stream = nullptr;
  FM_REQUIRE(
      getter && getter(device, &stream) == AOTI_TORCH_SUCCESS,
      "cannot find torch's current CUDA stream. Install a CUDA build of torch 2.11 or newer.");
  return stream;
}
#endif

// The call of a CUDA kernel, for run(); a no-op in a build without CUDA.
#if defined(FM_WITH_CUDA)
#define FM_CUDA(call) [&]([[maybe_unused]] void* stream) { return cuda::call; }
#else
#define FM_CUDA(call) [](void*) { return 0; }
#endif

// Calls `on_cpu(parallel)` or `on_cuda(stream)` with the tensor's device current, and checks the
// launch.
template <class OnCpu, class OnCuda>
void run(const Tensor& where, const char* op, const OnCpu& on_cpu, const OnCuda& on_cuda) {
  if (!where.is_cuda()) return on_cpu(torch_threads());
#if defined(FM_WITH_CUDA)
  const torch::stable::accelerator::DeviceGuard guard(where.get_device_index());
  const int error = on_cuda(current_stream(where.get_device_index()));
  FM_REQUIRE(error == 0, std::string(op) + ": the CUDA kernel was not launched, cudaError " +
                             std::to_string(error) + ". Is this GPU's architecture in " +
                             "fastmeta.show_config()?");
#else
  (void)op;
  (void)on_cuda;
#endif
}

}  // namespace fastmeta

// Registers the kernels in the following braces for the CPU and, if built, for CUDA.
#if defined(FM_WITH_CUDA)
#define FM_KERNELS(m)                                                    \
  static void register_kernels(torch::stable::detail::StableLibrary& m); \
  STABLE_TORCH_LIBRARY_IMPL(fastmeta, CPU, library) {                    \
    register_kernels(library);                                           \
  }                                                                      \
  STABLE_TORCH_LIBRARY_IMPL(fastmeta, CUDA, library) {                   \
    register_kernels(library);                                           \
  }                                                                      \
  static void register_kernels(torch::stable::detail::StableLibrary& m)
#else
#define FM_KERNELS(m) STABLE_TORCH_LIBRARY_IMPL(fastmeta, CPU, m)
#endif
