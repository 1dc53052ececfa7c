// A weight of one or several matrices in a GPU's memory, as an ONNX tensor holds it.
#pragma once

#include <cstdint>

#include "types.h"

namespace edge::cuda {

enum class WeightFormat { kFloat32, kFloat16, kBfloat16, kInt8, kInt4 };

struct Weight {
  WeightFormat format;
  int64_t in;
  int64_t out;
  int64_t block;        // inputs that share a scale; 0 for the float formats
  const void* values;   // (matrices, in, out); int4 two to a byte, the first in the low half; at a multiple of 16 bytes
  const float* scales;  // (matrices, in / block, out); null for the float formats
};

constexpr bool is_integer(WeightFormat format) {
  return format == WeightFormat::kInt8 || format == WeightFormat::kInt4;
}

// Why no kernel here multiplies such a weight, or nullptr. Looks at sizes and formats only.
inline const char* unsupported(const Weight& weight, Type activations) {
  if (activations == Type::kInt8) return "activations are float32, float16 or bfloat16";
  if (weight.in < 1 || weight.out < 1) return "a matrix without elements";
  if (is_integer(weight.format) != (weight.block != 0)) return "integers need a block size, floats have none";
  if (!is_integer(weight.format)) return nullptr;
  if (weight.block % 32 != 0 || weight.block < 32 || weight.block > 256)
    return "the block size is not one of 32, 64, ... 256";
  if (weight.in % weight.block != 0) return "the input width is not a multiple of the block size";
  return nullptr;
}

// Whether tensor cores multiply it: float16 or bfloat16 activations, and rows that 16-byte copies can fetch. The
// others, which no model of some size has, and float32 are left to a plain kernel.
inline bool fits_tensor_cores(const Weight& weight, Type activations) {
  if (activations != Type::kFloat16 && activations != Type::kBfloat16) return false;
  switch (weight.format) {
    case WeightFormat::kFloat32:
      return false;
    case WeightFormat::kFloat16:
    case WeightFormat::kBfloat16:
      return weight.in % 16 == 0 && weight.out % 8 == 0;
    case WeightFormat::kInt8:
      return weight.out % 16 == 0;
    case WeightFormat::kInt4:
      return weight.out % 32 == 0;
  }
  return false;
}

}  // namespace edge::cuda
