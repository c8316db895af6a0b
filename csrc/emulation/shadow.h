// Which thread wrote and read each byte of shared memory since the last barrier: what a kernel does
// between two barriers must not depend on the order of the threads, whichever order is drawn.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace fastmeta::emulation {

// A thread that conflicts with the one that accesses memory, and how; without a thread, nobody has
// written what is read. `done` is null where all is well.
struct Hazard {
  const char* done = nullptr;
  int thread = -1;
};

class Shadow {
 public:
  // Static shared memory is all of the module's zero-initialised memory that kernels touch.
  Shadow();

  // The dynamic shared memory of the blocks to come.
  void watch(const void* dynamic, size_t bytes);

  void begin_block() { began_ = ++now_; }
  void pass_barrier() { ++now_; }

  // Whether that is shared memory. Asked at every access of a kernel: most are to other memory.
  static bool holds(const void* at) { return inside(statics_, at) || inside(dynamic_, at); }

  // Of memory that it holds, by a thread of the block.
  Hazard access(int thread, const void* at, size_t bytes, bool writes);

 private:
  // Of one byte. Two readers are enough: one of them is not the thread that writes.
  struct Cell {
    uint32_t written = 0, read = 0;  // the intervals between barriers, counted from 1
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
  std::vector<Cell> cells_[2];  // of both
  uint32_t now_ = 0, began_ = 0;
};

}  // namespace fastmeta::emulation
