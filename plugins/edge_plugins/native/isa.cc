#include "isa.h"

#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace edge {
namespace {

bool always() { return true; }

#if defined(__x86_64__)

bool has_avx2() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
  // These ask the operating system too, whether it saves the registers.
  return f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

bool has_avxvnni() {
  constexpr unsigned kAvxVnni = 1u << 4;
  unsigned a = 0, b = 0, c = 0, d = 0;
  return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & kAvxVnni) != 0;
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}

bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

bool has_amx() {
  constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25, kBf16 = 1u << 22;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!has_avx512_bf16() || __get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  if ((d & kTile) == 0 || (d & kInt8) == 0 || (d & kBf16) == 0) return false;
  // The tile registers are large: Linux gives them only to processes that ask (ARCH_REQ_XCOMP_PERM, XTILEDATA).
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

#elif defined(__aarch64__)

bool has_dotprod() {
  const unsigned long caps = getauxval(AT_HWCAP);
  return (caps & HWCAP_ASIMDDP) != 0 && (caps & HWCAP_ASIMDHP) != 0;
}

bool has_i8mm() {
  constexpr unsigned long kI8mm = 1ul << 13, kBf16 = 1ul << 14;  // HWCAP2_*, which older headers lack
  const unsigned long caps = getauxval(AT_HWCAP2);
  return has_dotprod() && (caps & kI8mm) != 0 && (caps & kBf16) != 0;
}

#endif

}  // namespace

// Weak: those that this build left out are null.
#define EDGE_WEAK extern const Kernels __attribute__((weak))
EDGE_WEAK kernels_baseline, kernels_avx2, kernels_avxvnni, kernels_avx512, kernels_avx512_bf16, kernels_amx;
EDGE_WEAK kernels_neon, kernels_dotprod, kernels_i8mm, kernels_amx_emulated;

namespace {

struct Candidate {
  const Kernels* kernels;
  bool (*usable)();
};

// Slowest first. The emulation is in test builds only.
// clang-format off
const Candidate kCandidates[] = {
#if defined(__x86_64__)
    {&kernels_amx_emulated, has_avx2},
    {&kernels_baseline, always},
    {&kernels_avx2, has_avx2},
    {&kernels_avxvnni, has_avxvnni},
    {&kernels_avx512, has_avx512},
    {&kernels_avx512_bf16, has_avx512_bf16},
    {&kernels_amx, has_amx},
#elif defined(__aarch64__)
    {&kernels_amx_emulated, always},
    {&kernels_neon, always},
    {&kernels_dotprod, has_dotprod},
    {&kernels_i8mm, has_i8mm},
#else
    {&kernels_baseline, always},
#endif
};
// clang-format on

}  // namespace

std::vector<const Kernels*> usable_kernels() {
  static const std::vector<const Kernels*> usable = [] {
    std::vector<const Kernels*> found;
    for (const Candidate& candidate : kCandidates) {
      if (candidate.kernels != nullptr && candidate.usable()) found.push_back(candidate.kernels);
    }
    return found;
  }();
  return usable;
}

const Kernels& choose_kernels(const std::string& isa) {
  const std::vector<const Kernels*> usable = usable_kernels();
  std::string names = "auto";
  for (const Kernels* kernels : usable) {
    if (isa == kernels->isa) return *kernels;
    names += std::string(", ") + kernels->isa;
  }
  if (isa == "auto" && !usable.empty()) return *usable.back();
  throw std::invalid_argument("The instruction set: expected one of " + names + ", found '" + isa +
                              "'. Choose one of these, or auto for the fastest.");
}

}  // namespace edge
