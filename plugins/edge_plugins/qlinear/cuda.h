// edge::QLinear on a GPU. Meaning and shapes: op.py.
#pragma once

#include "../native/stream.h"
#include "../native/types.h"
#include "../native/weight.h"
#include "kernel.h"

namespace edge::cuda {

struct QLinearArgs : QLinearShape {
  Type type;      // of x and y: float32, float16 or bfloat16
  const void* x;  // (tokens, weight.in)
  Weight weight;  // one matrix
  void* y;        // (tokens, weight.out)
};

// Bytes of device memory that a call needs; no fewer for more tokens.
size_t qlinear_workspace(const QLinearArgs& args);

// Allocates nothing, waits for nothing. With arrivals (native/arrivals.h), which may be null, few tokens take one
// kernel. Throws std::invalid_argument with qlinear_unsupported's words.
void qlinear(const QLinearArgs& args, void* workspace, uint32_t* arrivals, Stream stream);

// Why these types and sizes cannot be computed, or nullptr.
const char* qlinear_unsupported(const QLinearArgs& args);

}  // namespace edge::cuda
