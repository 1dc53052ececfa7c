#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <exception>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <utility>
#include <vector>

#include "device.h"  // and with it emulated_device.h

namespace edge::emulated {
namespace {

constexpr unsigned kLanes = 32;
constexpr size_t kStackBytes = size_t{256} << 10;
constexpr size_t kLargestExchange = 64;  // bytes that a lane shows at once

// Memory whose last byte is followed by a page that may not be touched, filled with 0xff.
class Guarded {
 public:
  explicit Guarded(size_t bytes) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    used_ = (bytes + page - 1) / page * page;
    pages_ = mmap(nullptr, used_ + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages_ == MAP_FAILED) throw std::bad_alloc();
    mprotect(static_cast<char*>(pages_) + used_, page, PROT_NONE);
    size_ = used_ + page;
    bytes_ = bytes;
  }
  ~Guarded() { munmap(pages_, size_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  // At a multiple of 16 bytes only, so that what ends the memory is near the page behind it.
  unsigned char* data() const { return static_cast<unsigned char*>(pages_) + used_ - (bytes_ + 15) / 16 * 16; }
  void poison() { std::memset(pages_, 0xff, used_); }

 private:
  void* pages_;
  size_t used_, size_, bytes_;
};

// A meeting of `expected` threads, again and again.
struct Barrier {
  unsigned expected = 0, waiting = 0;
  uint64_t round = 0;
};

struct Copy {
  void* to;
  size_t size;
  unsigned char bytes[16];
};

struct Warp {
  Barrier barrier;
  unsigned char shown[2][kLanes * kLargestExchange];
};

struct Fiber {
  ucontext_t context;
  Place place;
  bool done = false;
  uint64_t exchanges = 0;
  std::vector<std::vector<Copy>> groups;  // of asynchronous copies, the last one open
  const Barrier* waits_for = nullptr;
  uint64_t waits_in = 0;
};

// One block at a time; the fibers and their stacks are used again by the next.
class Device {
 public:
  uint32_t schedule = 0;

  void run(dim3 blocks, unsigned threads, size_t shared_bytes, const std::function<void()>& kernel) {
    if (threads == 0 || threads % kLanes != 0 || threads > 1024)
      throw std::logic_error("a block of " + std::to_string(threads) + " threads: expected whole warps, at most 1024");
    while (stacks_.size() < threads) stacks_.emplace_back(new unsigned char[kStackBytes]);
    kernel_ = &kernel;
    Guarded shared(shared_bytes);
    shared_ = shared.data();
    const uint64_t count = uint64_t{blocks.x} * blocks.y * blocks.z;
    for (uint64_t i = 0; i < count; ++i) {
      const uint64_t n = schedule == 0 ? i : count - 1 - i;
      shared.poison();
      run_block({static_cast<unsigned>(n % blocks.x), static_cast<unsigned>(n / blocks.x % blocks.y),
                 static_cast<unsigned>(n / blocks.x / blocks.y)},
                blocks, threads);
    }
  }

  Fiber& current() { return fibers_[current_]; }
  Warp& warp() { return warps_[current_ / kLanes]; }
  Barrier& block() { return block_; }
  unsigned char* shared() { return shared_; }

  void wait(Barrier& barrier) {
    if (++barrier.waiting == barrier.expected) {
      barrier.waiting = 0;
      ++barrier.round;
      return;
    }
    Fiber& fiber = current();
    fiber.waits_for = &barrier;
    fiber.waits_in = barrier.round;
    swapcontext(&fiber.context, &scheduler_);
  }

 private:
  void run_block(dim3 block, dim3 blocks, unsigned threads) {
    fibers_.assign(threads, Fiber());
    warps_.assign(threads / kLanes, Warp());
    for (Warp& warp : warps_) warp.barrier.expected = kLanes;
    block_ = Barrier();
    block_.expected = threads;
    for (unsigned t = 0; t < threads; ++t) {
      Fiber& fiber = fibers_[t];
      fiber.place = {dim3(t, 0, 0), block, dim3(threads), blocks};
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = stacks_[t].get();
      fiber.context.uc_stack.ss_size = kStackBytes;
      fiber.context.uc_link = &scheduler_;
      makecontext(&fiber.context, enter, 0);
    }
    asleep_ = 0;
    std::vector<unsigned> order(threads);
    std::iota(order.begin(), order.end(), 0u);
    if (schedule != 0) std::reverse(order.begin(), order.end());
    for (unsigned left = threads; left > 0;) {
      if (schedule > 1) std::shuffle(order.begin(), order.end(), random_);
      left -= turn(order);
    }
  }

  // Every thread that can runs until it waits or ends; returns how many ended. Shuffled, some warps sleep for a turn,
  // so that others run ahead of them as far as barriers let them.
  unsigned turn(const std::vector<unsigned>& order) {
    unsigned ended = 0, ran = 0;
    if (schedule > 1 && random_() % 4 == 0) asleep_ = static_cast<uint32_t>(random_());
    for (const unsigned t : order) {
      Fiber& fiber = fibers_[t];
      if (asleep_ >> (t / kLanes) & 1) continue;
      if (fiber.done || (fiber.waits_for && fiber.waits_for->round == fiber.waits_in)) continue;
      fiber.waits_for = nullptr;
      current_ = t;
      ++ran;
      swapcontext(&scheduler_, &fiber.context);
      if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
      ended += fiber.done ? 1 : 0;
    }
    if (ran == 0 && std::exchange(asleep_, 0) == 0)
      throw std::logic_error("threads wait at a barrier that others never reach");
    return ended;
  }

  static void enter();

  const std::function<void()>* kernel_ = nullptr;
  unsigned char* shared_ = nullptr;
  ucontext_t scheduler_;
  std::vector<std::unique_ptr<unsigned char[]>> stacks_;
  std::vector<Fiber> fibers_;
  std::vector<Warp> warps_;
  Barrier block_;
  unsigned current_ = 0;
  uint32_t asleep_ = 0;  // a bit per warp
  std::exception_ptr error_;
  std::mt19937 random_{1};
};

Device& device() {
  thread_local Device device;
  return device;
}

void Device::enter() {
  Device& self = device();
  try {
    (*self.kernel_)();
    self.current().groups.clear();
  } catch (...) {
    self.error_ = std::current_exception();
  }
  self.current().done = true;
}

}  // namespace

const Place& here() { return device().current().place; }
unsigned char* shared_memory() { return device().shared(); }
void block_barrier() { device().wait(device().block()); }
void warp_barrier() { device().wait(device().warp().barrier); }
void set_schedule(uint32_t schedule) { device().schedule = schedule; }

void run(dim3 blocks, unsigned threads, size_t shared_bytes, const std::function<void()>& kernel) {
  device().run(blocks, threads, shared_bytes, kernel);
}

const unsigned char* exchange(const void* mine, size_t bytes) {
  if (bytes > kLargestExchange) throw std::logic_error("an exchange of more than 64 bytes a lane");
  // Two buffers in turn: a lane may be one exchange ahead of those that still read the last, never two.
  unsigned char* shown = device().warp().shown[device().current().exchanges++ % 2];
  std::memcpy(shown + (lane() * bytes), mine, bytes);
  warp_barrier();
  return shown;
}

void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], float (*convert)(uint16_t)) {
  struct Registers {
    uint32_t a[4], b[2];
  } mine = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}}, all[kLanes];
  std::memcpy(all, exchange(&mine, sizeof mine), sizeof all);
  const auto half = [convert](uint32_t pair, unsigned index) {
    return convert(static_cast<uint16_t>(index % 2 == 0 ? pair : pair >> 16));
  };
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = lane() / 4 + (i < 2 ? 0 : 8), column = lane() % 4 * 2 + i % 2;
    double sum = d[i];
    for (unsigned k = 0; k < 16; ++k) {
      const uint32_t left = all[row % 8 * 4 + k % 8 / 2].a[row / 8 + (k < 8 ? 0 : 2)];
      const uint32_t right = all[column * 4 + k % 8 / 2].b[k / 8];
      sum += double{half(left, k)} * half(right, k);
    }
    d[i] = static_cast<float>(sum);
  }
}

void load_matrices(uint32_t (&r)[4], const void* row, bool transposed) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) throw std::logic_error("a matrix row that is not at 16 bytes");
  const unsigned char* rows[kLanes];
  std::memcpy(rows, exchange(&row, sizeof row), sizeof rows);
  for (unsigned m = 0; m < 4; ++m) {
    uint16_t pair[2];
    for (unsigned i = 0; i < 2; ++i) {
      const unsigned near = lane() / 4, far = lane() % 4 * 2 + i;
      const unsigned at = transposed ? far : near, column = transposed ? near : far;
      std::memcpy(&pair[i], rows[m * 8 + at] + (column * 2), 2);
    }
    r[m] = uint32_t{pair[0]} | uint32_t{pair[1]} << 16;
  }
  warp_barrier();  // what was read may be overwritten only after every lane has read it
}

void copy_async(void* shared, const void* global, size_t bytes, bool valid) {
  if ((reinterpret_cast<uintptr_t>(shared) | (valid ? reinterpret_cast<uintptr_t>(global) : 0)) % bytes != 0)
    throw std::logic_error("an asynchronous copy whose addresses are no multiples of its size");
  Copy copy{shared, bytes, {}};
  if (valid) std::memcpy(copy.bytes, global, bytes);
  if (device().schedule == 1) {
    std::memcpy(shared, copy.bytes, bytes);
    return;
  }
  auto& groups = device().current().groups;
  if (groups.empty()) groups.emplace_back();
  groups.back().push_back(copy);
}

void commit_async() {
  auto& groups = device().current().groups;
  if (groups.empty()) groups.emplace_back();
  groups.emplace_back();
}

void wait_async(int pending) {
  auto& groups = device().current().groups;
  while (static_cast<int>(groups.size()) - 1 > pending) {
    for (const Copy& copy : groups.front()) std::memcpy(copy.to, copy.bytes, copy.size);
    groups.erase(groups.begin());
  }
}

}  // namespace edge::emulated
