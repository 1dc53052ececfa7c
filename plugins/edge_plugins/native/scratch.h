// Memory for a kernel's intermediate results: each thread keeps what it once needed, so a decode step allocates
// nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

namespace edge {

// A stack of blocks that never move. Frames release what was taken since they began.
class Scratch {
 public:
  static Scratch& of_this_thread() {
    thread_local Scratch scratch;
    return scratch;
  }

  // 64-byte aligned, not initialised.
  void* take(size_t bytes) {
    bytes = (bytes + 63) & ~size_t{63};
    while (current_ < blocks_.size() && used_ + bytes > blocks_[current_].bytes) {
      ++current_;
      used_ = 0;
    }
    if (current_ == blocks_.size()) grow(bytes);
    uint8_t* start = blocks_[current_].memory.get() + used_;
    used_ += bytes;
    return start;
  }

 private:
  friend class Frame;
  struct Free {
    void operator()(uint8_t* memory) const { ::operator delete[](memory, std::align_val_t{64}); }
  };
  struct Block {
    std::unique_ptr<uint8_t[], Free> memory;
    size_t bytes;
  };

  void grow(size_t bytes) {
    const size_t last = blocks_.empty() ? size_t{1} << 18 : 2 * blocks_.back().bytes;
    const size_t size = bytes > last ? bytes : last;
    blocks_.push_back({std::unique_ptr<uint8_t[], Free>(new (std::align_val_t{64}) uint8_t[size]), size});
    used_ = 0;
  }

  std::vector<Block> blocks_;
  size_t current_ = 0;
  size_t used_ = 0;
};

class Frame {
 public:
  Frame() : scratch_(Scratch::of_this_thread()), current_(scratch_.current_), used_(scratch_.used_) {}
  ~Frame() {
    scratch_.current_ = current_;
    scratch_.used_ = used_;
  }
  Frame(const Frame&) = delete;
  Frame& operator=(const Frame&) = delete;

  template <class T>
  T* take(int64_t count) {
    return static_cast<T*>(scratch_.take(static_cast<size_t>(count) * sizeof(T)));
  }

 private:
  Scratch& scratch_;
  size_t current_;
  size_t used_;
};

}  // namespace edge
