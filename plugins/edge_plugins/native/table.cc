// The table of one instruction set, EDGE_ISA.
#include "isa.h"

#define EDGE_JOIN_(a, b) a##b
#define EDGE_JOIN(a, b) EDGE_JOIN_(a, b)
#define EDGE_TEXT_(a) #a
#define EDGE_TEXT(a) EDGE_TEXT_(a)

namespace edge {
namespace EDGE_ISA {

void mamba2_mixer(const Mamba2MixerArgs&, const Parallel&);
void moe(const MoeArgs&, const Parallel&);
void cached_attention(const CachedAttentionArgs&, const Parallel&);
void qlinear(const QLinearArgs&, const Parallel&);

}  // namespace EDGE_ISA

extern const Kernels EDGE_JOIN(kernels_, EDGE_ISA);
const Kernels EDGE_JOIN(kernels_, EDGE_ISA) = {EDGE_TEXT(EDGE_ISA), EDGE_ISA::mamba2_mixer, EDGE_ISA::moe,
                                               EDGE_ISA::cached_attention, EDGE_ISA::qlinear};

}  // namespace edge
