// One block of threads on the CPU. Threads run one at a time, each until it waits for others; the
// next is drawn at random, so that a missing barrier changes the result for some seed. Undefined
// behaviour in CUDA is an error here: barriers that only part of the block reaches, masks that
// differ from the participating lanes, shuffles from lanes outside of the mask, and races and
// uninitialised reads in shared memory.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "emulation/fiber.h"
#include "emulation/shadow.h"

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace fastmeta::emulation {

constexpr int kLanes = 32;

// A fault in a kernel: what happened, and to which thread.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A call of an intrinsic in the kernel's source.
struct CallSite {
  const char* call;
  const char* file;
  int line;
};

class Block {
 public:
  using Random = std::mt19937_64;

  // Calls `body` as each thread of blockDim. Throws the first fault or exception of any thread;
  // faults name the `kernel`.
  void run(const std::string& kernel, Random& random, const std::function<void()>& body);

  // Sets the dynamic shared memory of the following blocks, which they find filled with NaN.
  void resize_shared(size_t bytes);
  void* shared();

  // __syncthreads: returns when every thread of the block has called it.
  void barrier(CallSite call_site);

  // Shuffles and votes: returns when every lane of `mask` has called it. The result is the `bits`
  // of lane `source` or, for kVote, the mask of the lanes whose bits are not zero. For kGather the
  // bits are an address, and the result is that of a copy of the `bytes` there of all lanes.
  uint64_t exchange(CallSite call_site, unsigned mask, int source, uint64_t bits, size_t bytes = 0);
  static constexpr int kVote = -1, kGather = -2;

  // Instructions of a whole warp: the values of its 32 lanes, valid until the next such call.
  template <class V>
  const V* gather(CallSite call_site, const V& own) {
    static_assert(sizeof(V) <= kGatherBytes && std::is_trivially_copyable_v<V>);
    const auto bits = static_cast<uint64_t>(reinterpret_cast<uintptr_t>(&own));
    return reinterpret_cast<const V*>(exchange(call_site, ~0u, kGather, bits, sizeof(V)));
  }

  // cp.async: the copy of 16 bytes to shared memory, or of zeros if `from` is null, is made when
  // the thread waits for it.
  void copy_later(void* to, const void* from);
  void wait_for_copies();

  // Called before the running thread accesses shared memory.
  void access(const void* at, size_t bytes, bool writes);

  // __threadfence, and atomic operations, by which blocks communicate: there must be a fence
  // between the last barrier and the atomic, and one between it and the next barrier.
  void fence();
  void atomic(CallSite call_site);

  // The lane of the running thread in its warp.
  int lane() const;

  // Reports a fault of the running thread and suspends it for good.
  [[noreturn]] void fail(const std::string& what);

 private:
  enum class State : uint8_t { fresh, ready, at_barrier, in_warp, ended };

  struct Thread {
    State state;
    Fiber* fiber;
    bool fenced;         // since the last barrier
    bool needs_fence;    // since an atomic operation
    CallSite call_site;  // where it waits; below: its arguments
    unsigned mask;
    int source;
    uint64_t bits;
    size_t bytes;
  };

  static constexpr size_t kGatherBytes = 48;
  struct alignas(8) Gathered {
    unsigned char bytes[kLanes * kGatherBytes];
  };

  struct Copy {
    void* to;
    const void* from;
  };

  void step(Random& random);
  Fiber* idle_fiber();
  void run_thread();
  void make_ready(int id);
  void release_barrier();
  void release_warp(int first);
  std::string heading() const;
  std::string describe(int id) const;
  std::string describe_stuck() const;

  std::vector<Thread> threads_;
  std::vector<int> runnable_;
  std::vector<std::unique_ptr<Fiber>> fibers_;  // reused by the following blocks
  std::vector<Fiber*> idle_;
  std::vector<Gathered> gathered_;         // of each warp
  std::vector<std::vector<Copy>> copies_;  // of each thread
  std::vector<unsigned char> shared_;      // followed by guard bytes
  Shadow memory_;
  std::string kernel_;
  const std::function<void()>* body_ = nullptr;
  std::exception_ptr error_;
  int current_ = 0;
  int waiting_ = 0;  // at the barrier
  int ended_ = 0;
};

// The only block: shared memory is static, so there cannot be a second one.
Block& block();

}  // namespace fastmeta::emulation
