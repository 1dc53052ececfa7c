#include "memory.h"

#include "program.h"

namespace edge::ptx {
namespace {

constexpr uint64_t kAlignment = 256;

// Whether what happened at `before` is certain to have happened before `now`.
bool ordered(const Moment& before, const Moment& now) {
  if (before.launch != now.launch) return true;
  if (before.block != now.block) return false;
  if (before.phase != now.phase || before.thread == now.thread) return true;
  return before.thread / kLanes == now.thread / kLanes && before.step != now.step;
}

}  // namespace

bool Shadow::read(const Moment& now) {
  const bool safe = ordered(written_, now);
  const Moment before = read_;
  const Readers known = readers_;
  read_ = now;
  readers_ = Readers::kOne;
  if (before.launch != now.launch) return safe;
  if (before.block != now.block || known == Readers::kGrid) {
    readers_ = Readers::kGrid;
  } else if (before.phase == now.phase) {
    const bool one_warp = before.thread / kLanes == now.thread / kLanes;
    if (!one_warp || known == Readers::kBlock) {
      readers_ = Readers::kBlock;
    } else if (before.step == now.step && (before.thread != now.thread || known == Readers::kWarp)) {
      readers_ = Readers::kWarp;
    }
  }
  return safe;
}

bool Shadow::write(const Moment& now) {
  const bool after_write = ordered(written_, now);
  written_ = now;
  if (read_.launch != now.launch) return after_write;
  const bool one_warp = read_.thread / kLanes == now.thread / kLanes;
  switch (readers_) {
    case Readers::kOne:
      return after_write && ordered(read_, now);
    case Readers::kWarp:
      return after_write && read_.block == now.block &&
             (read_.phase != now.phase || (one_warp && read_.step != now.step));
    case Readers::kBlock:
      return after_write && read_.block == now.block && read_.phase != now.phase;
    default:
      return false;
  }
}

void* GlobalMemory::allocate(size_t bytes) {
  auto memory = std::make_unique<unsigned char[]>(bytes + kAlignment);
  const auto at = (reinterpret_cast<uint64_t>(memory.get()) + kAlignment - 1) / kAlignment * kAlignment;
  auto* data = reinterpret_cast<unsigned char*>(at);
  regions_.emplace(at, Owned{std::move(memory), Region(data, bytes)});
  return data;
}

void GlobalMemory::release(void* at) {
  last_ = nullptr;
  regions_.erase(reinterpret_cast<uint64_t>(at));
}

Region* GlobalMemory::find(uint64_t address, size_t bytes) {
  const auto holds = [&](const Region& region) {
    const auto begin = reinterpret_cast<uint64_t>(region.data());
    return address >= begin && address + bytes <= begin + region.bytes();
  };
  if (last_ != nullptr && holds(*last_)) return last_;
  auto next = regions_.upper_bound(address);
  if (next == regions_.begin() || !holds((--next)->second.region)) return nullptr;
  return last_ = &next->second.region;
}

}  // namespace edge::ptx
