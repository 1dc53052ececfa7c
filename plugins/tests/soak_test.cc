// A million single steps of Mamba2Mixer, states in place: no drift from the recurrence in double, no growth of memory.
//
// soak_test [instruction set [steps]]. At eight tokens a second that is a day and a half of talking.
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <new>

#include "mamba.h"

namespace {

int64_t allocations = 0;

}  // namespace

void* operator new(size_t size) {
  ++allocations;
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
void* operator new(size_t size, std::align_val_t alignment) {
  ++allocations;
  if (void* memory = std::aligned_alloc(static_cast<size_t>(alignment), size)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace edge::test {
namespace {

int64_t resident_bytes() {
  std::ifstream file("/proc/self/statm");
  int64_t all = 0, resident = 0;
  file >> all >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

void soak(const Kernels& kernels, int64_t steps) {
  Mamba m(1, 1, 4, 16, 2, 16, 4, Type::kFloat32, false);
  m.args.present_conv = m.past_conv.data();
  m.args.present_ssm = m.past_ssm.data();
  reference::Doubles conv(m.past_conv.data(), m.past_conv.data() + m.past_conv.size()),
      ssm = loaded(m.past_ssm, Type::kFloat32);
  std::uniform_real_distribution<float> uniform(-2, 2);
  int64_t resident = 0, allocated = 0;
  for (int64_t step = 0; step < steps; ++step) {
    for (int64_t i = 0; i < m.width; ++i) m.proj[i] = uniform(random_bits());
    const int64_t before = allocations;
    kernels.mamba2_mixer(m.args, Parallel());
    if (step > 0) allocated += allocations - before;
    const reference::Doubles y = reference::mamba2_step(m.args, m.proj.data(), conv.data(), ssm.data());
    if (step % (steps / 20) == steps / 20 - 1) {
      check_close(m.y, y, 2e-5, "y after step " + std::to_string(step));
      check_close(loaded(m.past_ssm, Type::kFloat32), ssm, 2e-5, "state after step " + std::to_string(step));
      if (resident == 0) resident = resident_bytes();
    }
  }
  check(allocated == 0, "steps allocate: " + std::to_string(allocated));
  check(resident_bytes() - resident < 1 << 18, "memory grew by " + std::to_string(resident_bytes() - resident));
}

}  // namespace
}  // namespace edge::test

int main(int argc, char** argv) {
  edge::test::soak(edge::choose_kernels(argc > 1 ? argv[1] : "auto"), argc > 2 ? std::atoll(argv[2]) : 1000000);
  std::printf("%d passed, %d failed\n", edge::test::count().passed, edge::test::count().failed);
  return edge::test::count().failed == 0 ? 0 : 1;
}
