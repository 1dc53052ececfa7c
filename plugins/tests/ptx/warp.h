// Runs a program as a GPU does: grids of blocks, blocks of warps, 32 lanes in step until they part.
#pragma once

#include "memory.h"
#include "program.h"

namespace edge::ptx {

struct Size {
  unsigned x = 1, y = 1, z = 1;
};

// What one launch is about.
struct Launch {
  const Program* program;
  Size grid, threads;
  size_t shared_bytes;  // dynamic
  const unsigned char* parameters;
  GlobalMemory* memory;
  std::map<uint64_t, Seen>* released;  // by the address of an atomic operation
  uint32_t number;                     // counts launches, from 1
  bool backward;                       // the order of blocks, and of a block's warps
};

using Register = std::array<uint64_t, kLanes>;

// Calls call(lane) for these lanes (bits).
template <class F>
void each(uint32_t lanes, F call) {
  if (lanes == kAllLanes) {
    for (unsigned lane = 0; lane < kLanes; ++lane) call(lane);
  } else {
    for (; lanes != 0; lanes &= lanes - 1) call(static_cast<unsigned>(__builtin_ctz(lanes)));
  }
}

struct Block;

class Warp {
 public:
  Warp(Block& block, const Launch& launch, unsigned index, Size at);

  // Until every lane has ended or stands at a barrier of the block. Throws std::runtime_error for what a GPU would
  // refuse, or what it would not do the same way twice.
  void run();
  bool ended() const { return alive_ == 0; }
  void pass_barrier();

  Register& value(int index) { return registers_[index]; }

  // Bytes that a lane reads or writes; they lie `bytes` long at a multiple of it.
  const unsigned char* read(const Instruction& instruction, uint64_t address, size_t bytes, unsigned lane);
  unsigned char* write(const Instruction& instruction, uint64_t address, size_t bytes, unsigned lane);
  // Counts what a request moves.
  void account(const Instruction& instruction, const Register& addresses, size_t bytes, uint32_t lanes);

  void copy_async(const Instruction& instruction, uint64_t to, uint64_t from, size_t bytes, size_t given,
                  unsigned lane);
  void commit_async(uint32_t lanes);
  void wait_async(const Instruction& instruction, size_t pending, uint32_t lanes);
  void pass_warp_barrier() { ++step_; }
  // Adds to what stands at an address that only atomic operations reach, wraps to 0 beyond `limit`, and returns what
  // stood there.
  uint32_t increment(const Instruction& instruction, uint64_t address, uint32_t limit, unsigned lane);
  void fence(uint32_t lanes);

  [[noreturn]] void fail(const Instruction& instruction, const std::string& what) const;

 private:
  struct Copy {
    uint64_t to;
    size_t bytes;
    unsigned char data[16];
  };

  void run_together(uint32_t lanes);
  size_t least_at(uint32_t lanes) const;
  void meet();
  uint32_t allowed(const Instruction& instruction) const;
  Moment now(unsigned lane) const;
  unsigned char* reach(const Instruction& instruction, uint64_t address, size_t bytes, unsigned lane, bool writes);

  Block& block_;
  const Launch& launch_;
  unsigned first_thread_;
  std::vector<Register> registers_;
  std::array<size_t, kLanes> at_{};  // the next instruction of each lane
  uint32_t alive_, waiting_ = 0;
  uint16_t step_ = 0;
  std::array<Moment, kLanes> fences_{};  // the last one of each lane
  std::array<Seen, kLanes> met_;         // what atomic operations found, for the lane's next fence
  std::array<std::vector<std::vector<Copy>>, kLanes> copies_;
};

// All blocks, one after another. Throws as Warp::run does.
void run(const Launch& launch);

}  // namespace edge::ptx
