#include "warp.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <stdexcept>

namespace edge::ptx {
namespace {

constexpr size_t kSectorBytes = 32, kBanks = 32, kBankBytes = 4;

}  // namespace

// A block's shared memory, and how far its barriers have come.
struct Block {
  Block(size_t shared_bytes, uint32_t number_)
      : number(number_), memory(shared_bytes, 0xff), pending(shared_bytes, 0), shared(memory.data(), shared_bytes) {}

  uint32_t number, phase = 0;
  std::vector<unsigned char> memory;  // begins as NaN
  std::vector<uint8_t> pending;       // of each byte, how many asynchronous copies have yet to bring it
  Region shared;
  Seen seen, acquired;  // of other blocks; the latter from the next barrier on
};

Warp::Warp(Block& block, const Launch& launch, unsigned index, Size at)
    : block_(block), launch_(launch), first_thread_(index * kLanes), registers_(launch.program->registers) {
  const unsigned threads = launch.threads.x - first_thread_;
  alive_ = threads >= kLanes ? kAllLanes : (1u << threads) - 1;
  for (const auto& [place, constant] : launch.program->constants) registers_[place].fill(constant);
  for (const auto& [place, offset] : launch.program->parameter_places) {
    registers_[place].fill(reinterpret_cast<uint64_t>(launch.parameters) + offset);
  }
  const Size grid = launch.grid;
  const std::map<std::string, uint64_t> alike = {{"%ntid.x", launch.threads.x},
                                                 {"%ctaid.x", at.x},
                                                 {"%ctaid.y", at.y},
                                                 {"%ctaid.z", at.z},
                                                 {"%nctaid.x", grid.x},
                                                 {"%nctaid.y", grid.y},
                                                 {"%nctaid.z", grid.z},
                                                 {"%tid.y", 0},
                                                 {"%tid.z", 0},
                                                 {"%ntid.y", 1},
                                                 {"%ntid.z", 1}};
  for (const auto& [place, name] : launch.program->specials) {
    for (unsigned lane = 0; lane < kLanes; ++lane) {
      registers_[place][lane] = name == "%tid.x" ? first_thread_ + lane : name == "%laneid" ? lane : alike.at(name);
    }
  }
}

void Warp::fail(const Instruction& instruction, const std::string& what) const {
  throw std::runtime_error(launch_.program->name + " at " + launch_.program->place(instruction) + ", `" +
                           instruction.text + "`: " + what);
}

Moment Warp::now(unsigned lane) const {
  return {launch_.number,     block_.number, block_.phase, step_, static_cast<uint16_t>(first_thread_ + lane),
          fences_[lane].fence};
}

// ---- Control ----

void Warp::run() {
  while (alive_ != 0) {
    const uint32_t runnable = alive_ & ~waiting_;
    if (runnable == 0) {
      const size_t first = at_[static_cast<unsigned>(__builtin_ctz(alive_))];
      each(alive_, [&](unsigned lane) {
        if (at_[lane] != first)
          fail(launch_.program->instructions[at_[lane]], "lanes of a warp wait for each other in two places");
      });
      if (launch_.program->instructions[first].kind == Kind::kBlock) return;
      meet();
      continue;
    }
    // Those that are furthest behind: so lanes that parted come together again.
    const size_t least = least_at(runnable);
    uint32_t lanes = 0;
    each(runnable, [&](unsigned lane) { lanes |= (at_[lane] == least ? 1u : 0u) << lane; });
    run_together(lanes);
  }
}

// Where the furthest behind of these lanes stands; behind everything where there are none.
size_t Warp::least_at(uint32_t lanes) const {
  size_t least = SIZE_MAX;
  each(lanes, [&](unsigned lane) { least = std::min(least, at_[lane]); });
  return least;
}

// These lanes, which stand at one instruction, until they part, wait, or reach others.
void Warp::run_together(uint32_t lanes) {
  const size_t others = least_at(alive_ & ~waiting_ & ~lanes);
  const auto leave_at = [&](size_t next) { each(lanes, [&](unsigned lane) { at_[lane] = next; }); };
  const auto& instructions = launch_.program->instructions;
  for (size_t at = at_[static_cast<unsigned>(__builtin_ctz(lanes))], next;; at = next) {
    if (at >= others) return leave_at(at);
    const Instruction& instruction = instructions[at];
    const uint32_t chosen = lanes & allowed(instruction);
    ++launch_.program->instructions_run;
    next = at + 1;
    switch (instruction.kind) {
      case Kind::kPlain:
        if (chosen != 0) instruction.execute(*this, instruction, chosen);
        break;
      case Kind::kExit:
        alive_ &= ~chosen;
        lanes &= ~chosen;
        if (lanes == 0) return;
        break;
      case Kind::kBranch:
        if (chosen == lanes) {
          next = instruction.target;
          if (others != SIZE_MAX) return leave_at(next);
        } else if (chosen != 0) {
          leave_at(next);
          each(chosen, [&](unsigned lane) { at_[lane] = instruction.target; });
          return;
        }
        break;
      default:
        leave_at(at);
        waiting_ |= lanes;
        if (lanes != alive_ || instruction.kind == Kind::kBlock) return;
        meet();
    }
  }
}

// The lanes that the instruction's predicate lets through.
uint32_t Warp::allowed(const Instruction& instruction) const {
  if (instruction.guard < 0) return kAllLanes;
  const Register& guard = registers_[instruction.guard];
  uint32_t holds = 0;
  for (unsigned lane = 0; lane < kLanes; ++lane) holds |= static_cast<uint32_t>(guard[lane] & 1) << lane;
  return instruction.guard_negated ? ~holds : holds;
}

// All lanes stand at one instruction that needs them all.
void Warp::meet() {
  const size_t at = at_[static_cast<unsigned>(__builtin_ctz(alive_))];
  const Instruction& instruction = launch_.program->instructions[at];
  if (alive_ != kAllLanes) fail(instruction, "lanes have ended that it needs");
  waiting_ = 0;
  instruction.execute(*this, instruction, alive_);
  for (unsigned lane = 0; lane < kLanes; ++lane) at_[lane] = at + 1;
}

void Warp::pass_barrier() {
  waiting_ = 0;
  for (unsigned lane = 0; lane < kLanes; ++lane) ++at_[lane];
}

// ---- Memory ----

unsigned char* Warp::reach(const Instruction& instruction, uint64_t address, size_t bytes, unsigned lane, bool writes) {
  if (address % bytes != 0) fail(instruction, "an address that is no multiple of " + std::to_string(bytes));
  const bool shared = is_shared(address);
  Region* region = shared ? &block_.shared : launch_.memory->find(address, bytes);
  const uint64_t begin = shared ? kSharedBase : region == nullptr ? 0 : reinterpret_cast<uint64_t>(region->data());
  if (region == nullptr || address + bytes > begin + region->bytes()) {
    fail(instruction, (shared ? "beyond shared memory of " + std::to_string(region->bytes()) + " bytes, by "
                              : "outside of what was allocated, by ") +
                          "thread " + std::to_string(first_thread_ + lane));
  }
  const size_t offset = address - begin;
  Shadow* shadow = region->shadow(offset);
  const Moment moment = now(lane);
  for (size_t i = 0; i < bytes; ++i) {
    if (!(writes ? shadow[i].write(moment, block_.seen) : shadow[i].read(moment, block_.seen)))
      fail(instruction, "a race for a byte of " + std::string(shared ? "shared" : "global") + " memory, by thread " +
                            std::to_string(first_thread_ + lane));
    if (shared && block_.pending[offset + i] != 0)
      fail(instruction, "shared memory that an asynchronous copy has yet to bring");
  }
  return region->data() + offset;
}

const unsigned char* Warp::read(const Instruction& instruction, uint64_t address, size_t bytes, unsigned lane) {
  return reach(instruction, address, bytes, lane, false);
}

unsigned char* Warp::write(const Instruction& instruction, uint64_t address, size_t bytes, unsigned lane) {
  return reach(instruction, address, bytes, lane, true);
}

// Global memory moves in sectors; shared memory serves each bank's one word at a time, wide requests in parts of lanes
// that take 128 bytes (CUDA C++ Programming Guide, "Shared Memory"; for wide requests, NVIDIA's developers in their
// forum).
void Warp::account(const Instruction& instruction, const Register& addresses, size_t bytes, uint32_t lanes) {
  Traffic& traffic = instruction.traffic;
  ++traffic.requests;
  traffic.shared = is_shared(addresses[static_cast<unsigned>(__builtin_ctz(lanes))]);
  if (traffic.shared) {
    const unsigned together = bytes <= kBankBytes ? kLanes : static_cast<unsigned>(kBanks * kBankBytes / bytes);
    for (unsigned begin = 0; begin < kLanes; begin += together) {
      std::array<std::set<uint64_t>, kBanks> words;
      std::set<uint64_t> all;
      for (unsigned lane = begin; lane < begin + together; ++lane) {
        if ((lanes >> lane & 1) == 0) continue;
        for (uint64_t word = addresses[lane] / kBankBytes; word <= (addresses[lane] + bytes - 1) / kBankBytes; ++word) {
          words[word % kBanks].insert(word);
          all.insert(word);
        }
      }
      size_t passes = 0;
      for (const auto& bank : words) passes = std::max(passes, bank.size());
      traffic.parts += passes;
      traffic.fewest += (all.size() + kBanks - 1) / kBanks;
    }
    return;
  }
  std::set<uint64_t> sectors, starts;
  each(lanes, [&](unsigned lane) {
    const uint64_t last = (addresses[lane] + bytes - 1) / kSectorBytes;
    starts.insert(addresses[lane]);
    for (uint64_t sector = addresses[lane] / kSectorBytes; sector <= last; ++sector) sectors.insert(sector);
  });
  traffic.parts += sectors.size();
  traffic.fewest += (starts.size() * bytes + kSectorBytes - 1) / kSectorBytes;
}

void Warp::copy_async(const Instruction& instruction, uint64_t to, uint64_t from, size_t bytes, size_t given,
                      unsigned lane) {
  Copy copy{to, bytes, {}};
  if (given > 0) std::memcpy(copy.data, read(instruction, from, bytes, lane), given);
  write(instruction, to, bytes, lane);
  for (size_t i = 0; i < bytes; ++i) ++block_.pending[to - kSharedBase + i];
  if (copies_[lane].empty()) copies_[lane].emplace_back();
  copies_[lane].back().push_back(copy);
}

void Warp::commit_async(uint32_t lanes) {
  each(lanes, [&](unsigned lane) {
    if (copies_[lane].empty()) copies_[lane].emplace_back();
    copies_[lane].emplace_back();
  });
}

void Warp::wait_async(const Instruction& instruction, size_t pending, uint32_t lanes) {
  each(lanes, [&](unsigned lane) {
    auto& groups = copies_[lane];
    while (groups.size() > pending + 1) {
      for (const Copy& copy : groups.front()) {
        for (size_t i = 0; i < copy.bytes; ++i) --block_.pending[copy.to - kSharedBase + i];
        std::memcpy(write(instruction, copy.to, copy.bytes, lane), copy.data, copy.bytes);
      }
      groups.erase(groups.begin());
    }
  });
}

uint32_t Warp::increment(const Instruction& instruction, uint64_t address, uint32_t limit, unsigned lane) {
  Region* region = launch_.memory->find(address, sizeof(uint32_t));
  if (region == nullptr) fail(instruction, "outside of what was allocated");
  Seen& released = (*launch_.released)[address];
  met_[lane].add(released);
  if (fences_[lane].launch != 0) {
    released.add(fences_[lane]);
    released.add(block_.seen);
  }
  uint32_t found;
  unsigned char* at = region->data() + (address - reinterpret_cast<uint64_t>(region->data()));
  std::memcpy(&found, at, sizeof found);
  const uint32_t next = found >= limit ? 0 : found + 1;
  std::memcpy(at, &next, sizeof next);
  return found;
}

void Warp::fence(uint32_t lanes) {
  each(lanes, [&](unsigned lane) {
    const auto passed = static_cast<uint16_t>(fences_[lane].fence + 1);
    fences_[lane] = now(lane);
    fences_[lane].fence = passed;
    block_.acquired.add(met_[lane]);
  });
}

// ---- Launches ----

namespace {

void run_block(const Launch& launch, Size at, uint32_t number) {
  Block block(launch.program->static_shared_bytes + launch.shared_bytes, number);
  std::vector<Warp> warps;
  for (unsigned index = 0; index * kLanes < launch.threads.x; ++index) warps.emplace_back(block, launch, index, at);
  for (size_t left = warps.size(); left > 0; ++block.phase) {
    left = 0;
    size_t ended = 0;
    for (size_t i = 0; i < warps.size(); ++i) {
      Warp& warp = warps[launch.backward ? warps.size() - 1 - i : i];
      warp.run();
      left += warp.ended() ? 0 : 1;
      ended += warp.ended() ? 1 : 0;
    }
    if (left > 0 && ended > 0)
      throw std::runtime_error(launch.program->name + ": a barrier of the block that some warps never reach");
    for (Warp& warp : warps) warp.pass_barrier();
    block.seen.add(block.acquired);
  }
}

}  // namespace

void run(const Launch& launch) {
  const Size grid = launch.grid;
  const uint64_t count = uint64_t{grid.x} * grid.y * grid.z;
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t n = launch.backward ? count - 1 - i : i;
    const Size at{static_cast<unsigned>(n % grid.x), static_cast<unsigned>(n / grid.x % grid.y),
                  static_cast<unsigned>(n / grid.x / grid.y)};
    run_block(launch, at, static_cast<uint32_t>(n));
  }
}

}  // namespace edge::ptx
