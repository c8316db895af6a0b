// The thread pool of the caller (torch's, or a plain loop), passed to the CPU kernels.
#pragma once

#include <atomic>
#include <cstdint>

namespace fastmeta {

class Parallel {
 public:
  using Range = void (*)(int64_t begin, int64_t end, void* context);
  using Run = void (*)(int64_t begin, int64_t end, int64_t grain, Range range, void* context);

  explicit Parallel(Run run) : run_(run) {}

  // Calls body(begin, end) over [0, count), in pieces of at least `grain`.
  template <class Body>
  void operator()(int64_t count, int64_t grain, const Body& body) const {
    if (count <= 0) return;
    const auto range = [](int64_t begin, int64_t end, void* context) {
      (*static_cast<const Body*>(context))(begin, end);
    };
    run_(0, count, grain, range, const_cast<void*>(static_cast<const void*>(&body)));
  }

  // Dynamic scheduling, for items of unequal work: every thread runs body(next), where next()
  // returns the next item, or `count` or more when none is left.
  template <class Body>
  void dynamic(int64_t count, int64_t grain, const Body& body) const {
    std::atomic<int64_t> taken{0};
    (*this)(count, grain, [&](int64_t, int64_t) {
      body([&] { return taken.fetch_add(1, std::memory_order_relaxed); });
    });
  }

 private:
  Run run_;
};

inline void run_serially(int64_t begin, int64_t end, int64_t, Parallel::Range range,
                         void* context) {
  range(begin, end, context);
}

}  // namespace fastmeta
