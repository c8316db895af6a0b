// A cache-aligned bump allocator, freed as a whole.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

#include "cpu/simd.h"

namespace fastmeta::cpu::FM_ISA {

template <class T>
class Arena {
 public:
  // `size` uninitialised elements; each piece taken must be a whole number of vectors.
  explicit Arena(int64_t size)
      : data_(static_cast<T*>(::operator new[](sizeof(T) * size, std::align_val_t(64)))),
        free_(data_.get()) {}

  T* take(int64_t size) {
    T* piece = free_;
    free_ += size;
    return piece;
  }
  T* take_zeros(int64_t size) {
    T* piece = take(size);
    memset(piece, 0, sizeof(T) * size);
    return piece;
  }

 private:
  struct Delete {
    void operator()(T* p) const { ::operator delete[](p, std::align_val_t(64)); }
  };
  std::unique_ptr<T, Delete> data_;
  T* free_;
};

}  // namespace fastmeta::cpu::FM_ISA
