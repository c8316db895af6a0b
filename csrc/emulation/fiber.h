// Fibers: calls that can be left half-way and taken up again, each on a stack of its own.
#pragma once

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstddef>
#include <new>

#if defined(_FORTIFY_SOURCE)
#error "glibc's checked longjmp refuses to change stacks: compile with -U_FORTIFY_SOURCE"
#endif

namespace fastmeta::emulation {

// Memory for one stack; a page below it stops an overflow. Pages never touched cost nothing.
class Stack {
 public:
  Stack() {
    void* base = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) throw std::bad_alloc();
    base_ = base;
    mprotect(base_, static_cast<size_t>(sysconf(_SC_PAGESIZE)), PROT_NONE);
  }
  ~Stack() { munmap(base_, kBytes); }
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;

  void* base() const { return base_; }
  static constexpr size_t kBytes = 256 * 1024;  // kernel parameters alone may take 32 KB

 private:
  void* base_;
};

// Does `work` over and over; each resume() takes it to the next leave() or to the end of one call.
// makecontext starts a fiber, but _longjmp switches: twenty times faster, as it leaves the signal
// mask alone and so makes no system call.
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
    if (_setjmp(outside_) == 0) {
      if (started_) _longjmp(inside_, 1);
      started_ = true;
      setcontext(&start_);
    }
    running_ = nullptr;
  }

  // On a fiber: back to whoever resumed it.
  static void leave() {
    if (_setjmp(running_->inside_) == 0) _longjmp(running_->outside_, 1);
  }

  static bool inside_one() { return running_ != nullptr; }

 private:
  static void repeat() {
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
};

}  // namespace fastmeta::emulation
