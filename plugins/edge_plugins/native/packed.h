// A weight matrix in the one layout that every instruction set reads.
//
// Outputs stand in panels of 64. Within a panel the inputs follow each other, so that a panel is one sequential read:
//
//   float32    values[panel][in][64]
//   bfloat16   values[panel][in / 2][64][2]
//   int8       values[panel][in / 4][64][4]   uint8: the value plus 128
//   int4       values[panel][in / 8][64][4]   byte j of an output: inputs j (low half) and 4 + j (high), plus 8
//   scales     [panel][in / block][64]        float16 where that loses nothing, else float32
//
// Outputs beyond the last one are zeros. The same bytes serve VNNI, AMX, dot products and matrix products on Arm.
#pragma once

#include <cstddef>
#include <cstdint>

namespace edge {

constexpr int64_t kPanel = 64;

enum class Format : uint32_t { kFloat32 = 0, kBfloat16 = 1, kInt8 = 2, kInt4 = 3 };

struct PackedMatrix {
  Format format = Format::kFloat32;
  int64_t in = 0;
  int64_t out = 0;
  int64_t block = 0;  // inputs that share a scale, a multiple of 32; 0 for float formats
  bool half_scales = false;
  const uint8_t* values = nullptr;  // 64-byte aligned
  const uint8_t* scales = nullptr;  // 64-byte aligned

  bool quantized() const { return block != 0; }
  int64_t panels() const { return (out + kPanel - 1) / kPanel; }
  size_t panel_bytes() const;        // of one panel's values
  size_t panel_scale_bytes() const;  // of one panel's scales
  size_t value_bytes() const { return panel_bytes() * static_cast<size_t>(panels()); }
  size_t scale_bytes() const { return panel_scale_bytes() * static_cast<size_t>(panels()); }
  size_t bytes() const { return value_bytes() + scale_bytes(); }  // a multiple of 64
};

// Whether float16 holds every scale exactly.
bool fits_float16(const float* scales, int64_t count);

// Why a matrix of these sizes cannot be packed, or nullptr. `in` must be even, and a multiple of the block if
// quantised.
const char* unpackable(const PackedMatrix& shape);

// Packs an ONNX tensor (in, out), int4 two to a byte with the first in the low half, and its scales (in / block, out)
// into `target` of shape.bytes() bytes, 64-byte aligned: values, then scales.
void pack(const PackedMatrix& shape, const void* weight, const float* scales, uint8_t* target);

// The matrix that pack() left at `base`.
PackedMatrix packed_at(PackedMatrix shape, const uint8_t* base);

}  // namespace edge
