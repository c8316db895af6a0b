// Race detection in shared memory: which thread wrote and read each byte since the last barrier.
// Between two barriers the result must not depend on the order of the threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace fastmeta::emulation {

// A conflict with another thread's access, or (thread -1) a read of uninitialised memory. `done` is
// null if there is no hazard.
struct Hazard {
  const char* done = nullptr;
  int thread = -1;
};

class Shadow {
 public:
  // All zero-initialised memory of the module counts as static shared memory.
  Shadow();

  // Sets the dynamic shared memory of the following blocks.
  void watch(const void* dynamic, size_t bytes);

  void begin_block() { began_ = ++now_; }
  void pass_barrier() { ++now_; }

  // Whether `at` is shared memory. Called at every access of a kernel, most of which are not.
  static bool holds(const void* at) { return inside(statics_, at) || inside(dynamic_, at); }

  // Records an access to shared memory by a thread of the block.
  Hazard access(int thread, const void* at, size_t bytes, bool writes);

 private:
  // State of one byte. Two readers suffice: one of them is not the writing thread.
  struct Cell {
    uint32_t written = 0, read = 0;  // in which interval between barriers, counted from 1
    uint16_t writer = 0, reader = 0, other_reader = 0;
  };
  struct Range {
    uintptr_t begin;
    size_t bytes;
  };

  static bool inside(const Range& range, const void* at) {
    return reinterpret_cast<uintptr_t>(at) - range.begin < range.bytes;
  }
  Hazard read(uint16_t thread, Cell& cell) const;
  Hazard write(uint16_t thread, Cell& cell) const;

  static inline Range statics_{}, dynamic_{};
  std::vector<Cell> cells_[2];  // of static and dynamic memory
  uint32_t now_ = 0, began_ = 0;
};

}  // namespace fastmeta::emulation
