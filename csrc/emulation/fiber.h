// Fibers: calls that can be suspended and resumed, each on its own stack.
#pragma once

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstddef>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#if defined(_FORTIFY_SOURCE)
#error "glibc's checked longjmp refuses to change stacks: compile with -U_FORTIFY_SOURCE"
#endif

namespace fastmeta::emulation {

// Annotations of stack switches for AddressSanitizer; empty without it.
#if defined(__SANITIZE_ADDRESS__)
inline void leave_stack(const void* next, size_t bytes) {
  __sanitizer_start_switch_fiber(nullptr, next, bytes);
}
inline void enter_stack(const void** last, size_t* bytes) {
  __sanitizer_finish_switch_fiber(nullptr, last, bytes);
}
inline void give_up_stack(void* stack, size_t bytes) {
  __asan_unpoison_memory_region(stack, bytes);
}
#else
inline void leave_stack(const void*, size_t) {}
inline void enter_stack(const void**, size_t*) {}
inline void give_up_stack(void*, size_t) {}
#endif

// Memory of one stack, with a guard page below. Untouched pages cost nothing.
class Stack {
 public:
  Stack() {
    void* base = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) throw std::bad_alloc();
    base_ = base;
    mprotect(base_, static_cast<size_t>(sysconf(_SC_PAGESIZE)), PROT_NONE);
  }
  ~Stack() {
    give_up_stack(base_, kBytes);
    munmap(base_, kBytes);
  }
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;

  void* base() const { return base_; }
  static constexpr size_t kBytes = 256 * 1024;  // kernel parameters alone may take 32 KB

 private:
  void* base_;
};

// Calls `work` repeatedly; each resume() runs up to the next leave() or the end of a call. A fiber
// is started by makecontext but switched by _longjmp: twenty times faster, since it does not change
// the signal mask and so makes no system call.
class Fiber {
 public:
  explicit Fiber(void (*work)()) : work_(work) {
    getcontext(&start_);
    start_.uc_stack.ss_sp = stack_.base();
    start_.uc_stack.ss_size = Stack::kBytes;
    start_.uc_link = nullptr;
    makecontext(&start_, &Fiber::repeat, 0);
  }

  void resume() {
    running_ = this;
    leave_stack(stack_.base(), Stack::kBytes);
    if (_setjmp(outside_) == 0) {
      if (started_) _longjmp(inside_, 1);
      started_ = true;
      setcontext(&start_);
    }
    enter_stack(nullptr, nullptr);
    running_ = nullptr;
  }

  // Called on a fiber: returns to the caller of resume().
  static void leave() {
    leave_stack(main_, main_bytes_);
    if (_setjmp(running_->inside_) == 0) _longjmp(running_->outside_, 1);
    enter_stack(&main_, &main_bytes_);
  }

  static bool inside_one() { return running_ != nullptr; }

 private:
  static void repeat() {
    enter_stack(&main_, &main_bytes_);
    for (;;) {
      running_->work_();
      leave();
    }
  }

  Stack stack_;
  ucontext_t start_;
  jmp_buf inside_;
  jmp_buf outside_;
  void (*work_)();
  bool started_ = false;
  static inline Fiber* running_ = nullptr;
  static inline const void* main_ = nullptr;  // the stack of the caller of resume()
  static inline size_t main_bytes_ = 0;
};

}  // namespace fastmeta::emulation
