// Divides a kernel's workspace; on no memory at all it counts what is needed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace edge {

class Workspace {
 public:
  explicit Workspace(void* memory) : memory_(static_cast<unsigned char*>(memory)) {}

  // Room for `count` elements at a multiple of 256 bytes, if the memory begins at one.
  template <class T>
  T* take(int64_t count) {
    unsigned char* place = memory_ == nullptr ? nullptr : memory_ + used_;
    used_ += (static_cast<size_t>(count) * sizeof(T) + 255) / 256 * 256;
    return reinterpret_cast<T*>(place);
  }
  size_t used() const { return used_; }

 private:
  unsigned char* memory_;
  size_t used_ = 0;
};

}  // namespace edge
