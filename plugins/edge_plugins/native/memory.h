// Memory for packed weights: aligned, in huge pages where that helps, or mapped from a file.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <memory>
#include <new>

namespace edge {

// Pages of `bytes` at `offset` of a file, or of anonymous memory if `file` is -1. Null if the system refuses.
inline std::shared_ptr<uint8_t> map_pages(int file, uint64_t offset, uint64_t bytes, int protection, int flags) {
  const uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  const uint64_t before = offset % page;  // a mapping begins with a page
  void* pages = mmap(nullptr, before + bytes, protection, flags, file, static_cast<off_t>(offset - before));
  if (pages == MAP_FAILED) return nullptr;
  const auto unmap = [pages, size = before + bytes](uint8_t*) { munmap(pages, size); };
  return {static_cast<uint8_t*>(pages) + before, unmap};
}

// Anonymous memory at a multiple of 64 bytes. Throws std::bad_alloc.
inline std::shared_ptr<uint8_t> new_memory(uint64_t bytes) {
  constexpr uint64_t kHugePage = uint64_t{2} << 20;
  // A weight is read from end to end in every step: with huge pages the prefetcher does not stop every 4 KiB.
  const uint64_t slack = bytes >= kHugePage ? kHugePage : 0;
  auto pages = map_pages(-1, 0, bytes + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  if (pages == nullptr) throw std::bad_alloc();
  if (slack == 0) return pages;
  const uint64_t past = reinterpret_cast<uintptr_t>(pages.get()) % kHugePage;
  uint8_t* aligned = pages.get() + (past == 0 ? 0 : kHugePage - past);
  madvise(aligned, bytes, MADV_HUGEPAGE);
  return {pages, aligned};
}

}  // namespace edge
