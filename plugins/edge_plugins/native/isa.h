// The kernels as one table per instruction set, chosen at run time.
#pragma once

#include <string>
#include <vector>

#include "../cached_attention/kernel.h"
#include "../mamba2_mixer/kernel.h"
#include "../moe/kernel.h"
#include "../qlinear/kernel.h"

namespace edge {

struct Kernels {
  const char* isa;
  void (*mamba2_mixer)(const Mamba2MixerArgs&, const Parallel&);
  void (*moe)(const MoeArgs&, const Parallel&);
  void (*cached_attention)(const CachedAttentionArgs&, const Parallel&);
  void (*qlinear)(const QLinearArgs&, const Parallel&);
};

// All that were compiled and that this processor can run, slowest first.
std::vector<const Kernels*> usable_kernels();

// The fastest usable kernels, or those of a name. Throws std::invalid_argument that lists the usable names.
const Kernels& choose_kernels(const std::string& isa = "auto");

}  // namespace edge
