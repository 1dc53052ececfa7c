// This instruction set's kernels.
#include "isa.h"

#define EDGE_CONCAT2(a, b) a##b
#define EDGE_CONCAT(a, b) EDGE_CONCAT2(a, b)
#define EDGE_STRING2(a) #a
#define EDGE_STRING(a) EDGE_STRING2(a)

namespace edge {
namespace EDGE_ISA {

void mamba2_mixer(const Mamba2MixerArgs& args, const Parallel& parallel);
void moe(const MoeArgs& args, const Parallel& parallel);
void cached_attention(const CachedAttentionArgs& args, const Parallel& parallel);
void qlinear(const QLinearArgs& args, const Parallel& parallel);

}  // namespace EDGE_ISA

extern const Kernels EDGE_CONCAT(kernels_, EDGE_ISA);
const Kernels EDGE_CONCAT(kernels_, EDGE_ISA) = {EDGE_STRING(EDGE_ISA), EDGE_ISA::mamba2_mixer, EDGE_ISA::moe,
                                                 EDGE_ISA::cached_attention, EDGE_ISA::qlinear};

}  // namespace edge
