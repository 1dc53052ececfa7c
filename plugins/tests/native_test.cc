// Every operator with every instruction set that this machine has, on odd shapes, against reference.h.
//
// native_test [instruction set ...]
#include <cstdio>
#include <cstring>
#include <stdexcept>

#include "check.h"

int main(int argc, char** argv) {
  using namespace edge;
  std::vector<const Kernels*> chosen = usable_kernels();
  if (argc > 1) chosen.clear();
  for (int i = 1; i < argc; ++i) chosen.push_back(&choose_kernels(argv[i]));
  try {
    choose_kernels("abacus");
    test::check(false, "an unknown instruction set is refused");
  } catch (const std::invalid_argument& error) {
    test::check(std::strstr(error.what(), usable_kernels()[0]->isa) != nullptr, "the refusal lists what there is");
  }
  test::test_packed_store();
  for (const Kernels* kernels : chosen) {
    const int before = test::count().passed;
    test::test_products(*kernels);
    test::test_mamba2_mixer(*kernels);
    test::test_cached_attention(*kernels);
    std::printf("%s: %d checks\n", kernels->isa, test::count().passed - before);
  }
  std::printf("%d passed, %d failed\n", test::count().passed, test::count().failed);
  return test::count().failed == 0 ? 0 : 1;
}
