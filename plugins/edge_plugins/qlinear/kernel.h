// edge::QLinear: y = x W, W packed. Meaning and shapes: op.py.
#pragma once

#include "../native/packed.h"
#include "../native/parallel.h"

namespace edge {

struct QLinearShape {
  int64_t tokens;  // product of x's leading axes, may be 0
};

struct QLinearArgs : QLinearShape {
  const float* x;  // (tokens, in)
  const PackedMatrix* weight;
  bool exact;  // keeps x in float32; otherwise it is rounded to int8 by blocks (or bfloat16) where that is faster
  float* y;    // (tokens, out)
};

}  // namespace edge
