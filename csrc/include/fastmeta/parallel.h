// The caller's thread pool (torch's, or a plain loop), handed to the CPU kernels.
#pragma once

#include <cstdint>

namespace fastmeta {

class Parallel {
 public:
  using Range = void (*)(int64_t begin, int64_t end, void* context);
  using Run = void (*)(int64_t begin, int64_t end, int64_t grain, Range range, void* context);

  explicit Parallel(Run run) : run_(run) {}

  // body(begin, end) over [0, count), in pieces of at least `grain`.
  template <class Body>
  void operator()(int64_t count, int64_t grain, const Body& body) const {
    if (count <= 0) return;
    const auto range = [](int64_t begin, int64_t end, void* context) {
      (*static_cast<const Body*>(context))(begin, end);
    };
    run_(0, count, grain, range, const_cast<void*>(static_cast<const void*>(&body)));
  }

 private:
  Run run_;
};

inline void run_serially(int64_t begin, int64_t end, int64_t, Parallel::Range range,
                         void* context) {
  range(begin, end, context);
}

}  // namespace fastmeta
