// Makes the compiler's own checks report faults of the emulated thread. Sources compiled with
// -fsanitize=bounds,alignment call the functions below; no sanitizer library is linked. So an index
// past a fixed-size array (shared memory, kernel parameters) and a misaligned vector access, which
// a CPU would let pass, are found.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "emulation/block.h"

namespace fastmeta::emulation {

// What every report of the compiler begins with.
struct SourceLocation {
  const char* file;
  uint32_t line;
  uint32_t column;
};

// The compiler takes its reports for calls that do not throw, so none may: the thread is dropped.
[[noreturn]] inline void report(const void* where, const std::string& what) {
  const auto* at = static_cast<const SourceLocation*>(where);
  const std::string file = at->file;
  const std::string text =
      what + " at " + file.substr(file.rfind('/') + 1) + ":" + std::to_string(at->line);
  if (Fiber::inside_one()) block().fail(text);
  fprintf(stderr, "host code of a launch %s\n", text.c_str());
  abort();
}

}  // namespace fastmeta::emulation

extern "C" {
__attribute__((used)) inline void __ubsan_handle_out_of_bounds(void* where, void* index) {
  fastmeta::emulation::report(where, "takes index " +
                                         std::to_string(reinterpret_cast<intptr_t>(index)) +
                                         ", past the end of an array,");
}
__attribute__((used)) inline void __ubsan_handle_type_mismatch_v1(void* where, void*) {
  fastmeta::emulation::report(where, "uses a misaligned address");
}
}
