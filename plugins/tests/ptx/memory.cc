#include "memory.h"

#include <algorithm>

#include "program.h"

namespace edge::ptx {
namespace {

constexpr uint64_t kAlignment = 256;

// Whether what happened at `before` is certain to have happened before `now`.
bool ordered(const Moment& before, const Moment& now, const Seen& seen) {
  if (before.launch != now.launch) return true;
  if (before.block != now.block) return seen.has(before);
  if (before.phase != now.phase || before.thread == now.thread) return true;
  return before.thread / kLanes == now.thread / kLanes && before.step != now.step;
}

}  // namespace

bool Seen::has(const Moment& before) const {
  const auto found = fences_.find(before.block);
  if (found == fences_.end()) return false;
  const Moment& fence = found->second;
  if (before.phase != fence.phase) return before.phase < fence.phase;
  return before.thread == fence.thread && before.fence < fence.fence;
}

bool Seen::has_all(uint32_t first, uint32_t last, uint32_t phase, uint32_t but) const {
  for (uint32_t block = first; block <= last; ++block) {
    if (block == but) continue;
    const auto found = fences_.find(block);
    if (found == fences_.end() || found->second.phase <= phase) return false;
  }
  return true;
}

void Seen::add(const Moment& fence) {
  Moment& known = fences_[fence.block];
  if (known.phase <= fence.phase) known = fence;
}

void Seen::add(const Seen& other) {
  for (const auto& [block, fence] : other.fences_) add(fence);
}

// Whether all who read the byte since its last write are certain to have done so before `now`.
bool Shadow::read_before(const Moment& now, const Seen& seen) const {
  if (read_.launch != now.launch) return true;
  if (readers_ == Readers::kOne) return ordered(read_, now, seen);
  const bool block_reads = first_reader_ <= now.block && now.block <= last_reader_;
  const bool one_warp = readers_ == Readers::kWarp && read_.thread / kLanes == now.thread / kLanes;
  const bool block_has = !block_reads || read_.phase < now.phase || (one_warp && read_.step != now.step);
  return block_has && seen.has_all(first_reader_, last_reader_, read_.phase, now.block);
}

bool Shadow::read(const Moment& now, const Seen& seen) {
  if (read_before(now, seen)) {  // a write after this read is a write after those
    readers_ = Readers::kOne;
    read_ = now;
    first_reader_ = last_reader_ = now.block;
  } else {
    const bool one_warp = readers_ <= Readers::kWarp && read_.thread / kLanes == now.thread / kLanes;
    const bool one_block = readers_ != Readers::kGrid && read_.block == now.block;
    readers_ = !one_block ? Readers::kGrid : one_warp ? Readers::kWarp : Readers::kBlock;
    const uint32_t latest = std::max(read_.phase, now.phase);
    read_ = now;
    read_.phase = latest;
    first_reader_ = std::min(first_reader_, now.block);
    last_reader_ = std::max(last_reader_, now.block);
  }
  return ordered(written_, now, seen);
}

bool Shadow::write(const Moment& now, const Seen& seen) {
  const bool safe = ordered(written_, now, seen) && read_before(now, seen);
  written_ = now;
  return safe;
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
