#include "emulation/shadow.h"

// Linker symbols: the bounds of this module's zero-initialised memory.
extern "C" __attribute__((visibility("hidden"))) char __bss_start[], _end[];

namespace fastmeta::emulation {

Shadow::Shadow() {
  statics_ = {reinterpret_cast<uintptr_t>(__bss_start), static_cast<size_t>(_end - __bss_start)};
  cells_[0].resize(statics_.bytes);
}

void Shadow::watch(const void* dynamic, size_t bytes) {
  dynamic_ = {reinterpret_cast<uintptr_t>(dynamic), bytes};
  cells_[1].resize(bytes);
}

Hazard Shadow::access(int thread, const void* at, size_t bytes, bool writes) {
  const bool dynamic = inside(dynamic_, at);
  const size_t first =
      reinterpret_cast<uintptr_t>(at) - (dynamic ? dynamic_.begin : statics_.begin);
  const uint16_t id = static_cast<uint16_t>(thread);
  for (size_t k = first; k < first + bytes && k < cells_[dynamic].size(); ++k) {
    Cell& cell = cells_[dynamic][k];
    const Hazard hazard = writes ? write(id, cell) : read(id, cell);
    if (hazard.done) return hazard;
  }
  return {};
}

Hazard Shadow::read(uint16_t thread, Cell& cell) const {
  if (cell.written < began_) return {"written", -1};
  if (cell.written == now_ && cell.writer != thread) return {"written", cell.writer};
  if (cell.read != now_) {
    cell.read = now_;
    cell.reader = cell.other_reader = thread;
  } else if (cell.reader != thread) {
    cell.other_reader = thread;
  }
  return {};
}

Hazard Shadow::write(uint16_t thread, Cell& cell) const {
  if (cell.written == now_ && cell.writer != thread) return {"written", cell.writer};
  if (cell.read == now_ && cell.reader != thread) return {"read", cell.reader};
  if (cell.read == now_ && cell.other_reader != thread) return {"read", cell.other_reader};
  cell.written = now_;
  cell.writer = thread;
  return {};
}

}  // namespace fastmeta::emulation
