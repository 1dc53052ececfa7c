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
// one block with a barrier between (phase), of one warp with a barrier of the warp between (step), or when the earlier
// one's block has released it and the later one's has seen that (Seen).
struct Moment {
  uint32_t launch = 0;
  uint32_t block = 0;
  uint32_t phase = 0;
  uint16_t step = 0;
  uint16_t thread = 0;
  uint16_t fence = 0;  // how many the thread has passed
};

// What a block has seen of others in this launch: of each a fence of one of its threads, and with that what the block
// did before the barrier before, and the thread before the fence. Fences are seen through atomic operations on one
// address: a release is a fence and then one of these, an acquisition one of these and then a fence, for the block's
// other threads after their next barrier (PTX ISA, "Memory Consistency Model").
class Seen {
 public:
  bool has(const Moment& before) const;
  // Everything in `phase` and before it, of all the blocks from first to last, but for the one that asks.
  bool has_all(uint32_t first, uint32_t last, uint32_t phase, uint32_t but) const;
  void add(const Moment& fence);
  void add(const Seen& other);

 private:
  std::map<uint32_t, Moment> fences_;  // by block
};

// What is remembered of a byte: the last write, and the readers since whom a write would race with.
class Shadow {
 public:
  // Both return false where the access races with an earlier one.
  bool read(const Moment& now, const Seen& seen);
  bool write(const Moment& now, const Seen& seen);

 private:
  enum class Readers : uint8_t { kOne, kWarp, kBlock, kGrid };

  bool read_before(const Moment& now, const Seen& seen) const;

  Moment written_, read_;
  uint32_t first_reader_ = 0, last_reader_ = 0;  // blocks; of kGrid, those between are taken for readers
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
