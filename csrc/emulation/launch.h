// Runs a kernel over a grid on the CPU, in place of cuda/stream.h.
#pragma once

#include <algorithm>
#include <cstring>
#include <numeric>
#include <string>

#include "emulation/block.h"
#include "emulation/names.h"

namespace fastmeta::emulation {

// Bytes of kernel parameters, laid out like the members of a struct.
template <class... P>
constexpr size_t parameter_bytes() {
  size_t bytes = 0;
  ((bytes = (bytes + alignof(P) - 1) / alignof(P) * alignof(P) + sizeof(P)), ...);
  return bytes;
}

inline std::string text(dim3 d) {
  return std::to_string(d.x) + " x " + std::to_string(d.y) + " x " + std::to_string(d.z);
}

inline void check_shape(dim3 grid, dim3 threads, size_t shared) {
  const bool fits_grid = grid.x > 0 && grid.x <= 0x7fffffffu && grid.y > 0 && grid.y <= 65535 &&
                         grid.z > 0 && grid.z <= 65535;
  const uint64_t count = uint64_t{threads.x} * threads.y * threads.z;
  if (!fits_grid || count == 0 || count > 1024 || threads.z > 64)
    throw Fault("CUDA refuses a grid of " + text(grid) + " blocks of " + text(threads) +
                " threads");
  if (shared > 227 * 1024)
    throw Fault("CUDA refuses blocks with " + std::to_string(shared) + " bytes of shared memory");
}

// Blocks and threads run one at a time, in an order that depends on the seed alone.
class Launch {
 public:
  // `capability`: the compute capability of the emulated GPU.
  explicit Launch(uint64_t seed, size_t shared = 0, int capability = 90)
      : seed_(seed), shared_(shared), capability_(capability) {}

  // As in cuda/stream.h.
  Launch with_shared(size_t bytes) const { return Launch(seed_, bytes, capability_); }
  template <class... P>
  bool compiled_for(void (*)(P...), int capability) const {
    return capability_ >= capability;
  }

  void zero(void* memory, size_t bytes) const { memset(memory, 0, bytes); }

  template <class... P, class... A>
  void operator()(void (*kernel)(P...), dim3 grid, dim3 threads, const A&... args) const {
    static_assert(parameter_bytes<P...>() <= 32764, "more than a kernel's parameters may take");
    run(kernel_name(reinterpret_cast<const void*>(kernel)), grid, threads,
        [&] { kernel(args...); });
  }

 private:
  void run(const std::string& kernel, dim3 grid, dim3 threads,
           const std::function<void()>& body) const {
    check_shape(grid, threads, shared_);
    gridDim = grid;
    blockDim = threads;
    block().resize_shared(shared_);
    Block::Random random(seed_);
    std::vector<uint64_t> order(uint64_t{grid.x} * grid.y * grid.z);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
    for (const uint64_t b : order) {
      blockIdx = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                  static_cast<unsigned>(b / grid.x / grid.y)};
      block().run(kernel, random, body);
    }
  }

  uint64_t seed_;
  size_t shared_;  // bytes of dynamic shared memory
  int capability_;
};

}  // namespace fastmeta::emulation
