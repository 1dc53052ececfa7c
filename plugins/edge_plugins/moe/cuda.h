// edge::MoE on a GPU. Meaning and shapes: op.py.
#pragma once

#include "../native/stream.h"
#include "../native/types.h"
#include "../native/weight.h"
#include "kernel.h"

namespace edge::cuda {

struct MoeArgs : MoeShape {
  Type type;                     // of x and y: float32, float16 or bfloat16
  const void* x;                 // (tokens, width)
  const float* router_logits;    // (tokens, experts)
  const float* correction_bias;  // (experts)
  Weight up;                     // `experts` matrices, [gate | up] side by side if gated
  Weight down;                   // `experts` matrices
  void* y;                       // (tokens, width)
};

// Bytes of device memory that a call needs; no fewer for more tokens.
size_t moe_workspace(const MoeArgs& args);

// Allocates nothing, waits for nothing. With arrivals (native/arrivals.h), which may be null, the last of the kernels
// for few tokens is left out. Throws std::invalid_argument with moe_unsupported's words.
void moe(const MoeArgs& args, void* workspace, uint32_t* arrivals, Stream stream);

// Why these types and sizes cannot be computed, or nullptr.
const char* moe_unsupported(const MoeArgs& args);

}  // namespace edge::cuda
