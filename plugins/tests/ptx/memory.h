// The device's memory and what was done to each byte of it, so that mistakes show: accesses out of bounds, not aligned,
// or in a race.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

namespace edge::ptx {

// When and by whom memory was reached. Two accesses are ordered when they are of different launches, of one thread, of
// one block with a barrier between (phase), or of one warp with a barrier of the warp between (step).
struct Moment {
  uint32_t launch = 0;
  uint32_t block = 0;
  uint32_t phase = 0;
  uint16_t step = 0;
  uint16_t thread = 0;
};

// What is remembered of a byte: the last write, and the readers since whom a write would race with.
class Shadow {
 public:
  // Both return false where the access races with an earlier one.
  bool read(const Moment& now);
  bool write(const Moment& now);

 private:
  enum class Readers : uint8_t { kOne, kWarp, kBlock, kGrid };

  Moment written_, read_;
  Readers readers_ = Readers::kOne;
};

// Bytes with their shadow, which is made when they are first reached.
class Region {
 public:
  Region(unsigned char* data, size_t bytes) : data_(data), bytes_(bytes) {}
  unsigned char* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  Shadow* shadow(size_t offset) {
    if (shadow_.empty()) shadow_.resize(bytes_);
    return &shadow_[offset];
  }

 private:
  unsigned char* data_;
  size_t bytes_;
  std::vector<Shadow> shadow_;
};

// What cudaMalloc gave, at multiples of 256 bytes.
class GlobalMemory {
 public:
  void* allocate(size_t bytes);
  void release(void* at);
  // The region that holds these bytes; null where none does.
  Region* find(uint64_t address, size_t bytes);

 private:
  struct Owned {
    std::unique_ptr<unsigned char[]> memory;
    Region region;
  };
  std::map<uint64_t, Owned> regions_;
  Region* last_ = nullptr;
};

}  // namespace edge::ptx
