// One block of threads on the CPU. Threads run one at a time, each until it waits for others; who
// comes next is drawn at random, so that a missing barrier changes the result for some seed. What
// CUDA leaves undefined is an error here: barriers that part of the block misses, masks that do not
// name exactly the lanes that come, values taken from lanes that gave none, shared memory read
// unset or raced for.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
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
struct Place {
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

  // Dynamic shared memory of the blocks to come, each of which finds it full of NaN.
  void resize_shared(size_t bytes);
  void* shared();

  // __syncthreads: goes on when every thread of the block has come.
  void barrier(Place place);

  // Shuffles and votes: goes on when every lane of `mask` has come. Returns the `bits` of lane
  // `source`; for kVote, the mask of the lanes whose bits are not zero.
  uint64_t exchange(Place place, unsigned mask, int source, uint64_t bits);
  static constexpr int kVote = -1;

  // To memory that its Shadow holds, before the running thread reads or writes it.
  void access(const void* at, size_t bytes, bool writes);

  // __threadfence, and an atomic operation, by which blocks of the kernels tell each other what
  // they have written: with a fence since the last barrier before it, and one before the next
  // behind it.
  void fence();
  void atomic(Place place);

  // Of the running thread, within its warp.
  int lane() const;

  // Reports a fault of the running thread, which never goes on.
  [[noreturn]] void fail(const std::string& what);

 private:
  enum class State : uint8_t { fresh, ready, at_barrier, in_warp, ended };

  struct Thread {
    State state;
    Fiber* fiber;
    bool fenced;      // since the last barrier
    bool owes_fence;  // since an atomic operation
    Place place;      // where it waits; below: what it brings
    unsigned mask;
    int source;
    uint64_t bits;
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
  std::vector<std::unique_ptr<Fiber>> fibers_;  // kept from block to block
  std::vector<Fiber*> idle_;
  std::vector<unsigned char> shared_;  // and a strip behind it, which must stay as it is
  Shadow memory_;
  std::string kernel_;
  const std::function<void()>* body_ = nullptr;
  std::exception_ptr error_;
  int current_ = 0;
  int waiting_ = 0;  // at the barrier
  int ended_ = 0;
};

// The only block: shared memory is static, so there is never a second one.
Block& block();

}  // namespace fastmeta::emulation
