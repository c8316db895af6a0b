// The run-time functions of the compiler's instrumentation (-fsanitize=bounds,alignment,thread; no
// sanitizer library is linked), which report faults of the emulated thread: an index past the end
// of a fixed-size array (shared memory, kernel parameters), a misaligned vector access, and races
// and uninitialised reads in shared memory. A CPU would run all of them without an error.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "emulation/block.h"

namespace fastmeta::emulation {
namespace {

// The first argument of every report.
struct SourceLocation {
  const char* file;
  uint32_t line;
  uint32_t column;
};

// The compiler assumes that these calls do not throw, so the thread is suspended for good.
[[noreturn]] void report(const void* where, const std::string& what) {
  const auto* at = static_cast<const SourceLocation*>(where);
  const std::string file = at->file;
  const std::string text =
      what + " at " + file.substr(file.rfind('/') + 1) + ":" + std::to_string(at->line);
  if (Fiber::inside_one()) block().fail(text);
  fprintf(stderr, "code outside of kernels %s\n", text.c_str());
  abort();
}

void access(const void* at, size_t bytes, bool writes) {
  if (Shadow::holds(at)) block().access(at, bytes, writes);
}

}  // namespace
}  // namespace fastmeta::emulation

using fastmeta::emulation::access;
using fastmeta::emulation::report;

extern "C" {

void __ubsan_handle_out_of_bounds(void* where, void* index) {
  report(where, "takes index " + std::to_string(reinterpret_cast<intptr_t>(index)) +
                    ", past the end of an array,");
}
void __ubsan_handle_type_mismatch_v1(void* where, void*) {
  report(where, "uses a misaligned address");
}

#define FM_ACCESS(bytes)                         \
  void __tsan_read##bytes(void* at) {            \
    access(at, bytes, false);                    \
  }                                              \
  void __tsan_write##bytes(void* at) {           \
    access(at, bytes, true);                     \
  }                                              \
  void __tsan_unaligned_read##bytes(void* at) {  \
    access(at, bytes, false);                    \
  }                                              \
  void __tsan_unaligned_write##bytes(void* at) { \
    access(at, bytes, true);                     \
  }
FM_ACCESS(1)
FM_ACCESS(2)
FM_ACCESS(4)
FM_ACCESS(8)
FM_ACCESS(16)
#undef FM_ACCESS

void __tsan_read_range(void* at, size_t bytes) {
  access(at, bytes, false);
}
void __tsan_write_range(void* at, size_t bytes) {
  access(at, bytes, true);
}
// Called by Clang only; GCC calls the C library.
void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
  access(from, bytes, false);
  access(to, bytes, true);
  return memcpy(to, from, bytes);
}
void* __tsan_memmove(void* to, const void* from, size_t bytes) {
  access(from, bytes, false);
  access(to, bytes, true);
  return memmove(to, from, bytes);
}
void* __tsan_memset(void* to, int value, size_t bytes) {
  access(to, bytes, true);
  return memset(to, value, bytes);
}

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void*, void*) {}

}  // extern "C"
