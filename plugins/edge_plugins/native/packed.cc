#include "packed.h"

#include <cmath>
#include <cstring>

#include "../../tests/reference.h"

namespace edge {
namespace {

using reference::to_half;

}  // namespace

size_t PackedMatrix::panel_bytes() const {
  const size_t count = static_cast<size_t>(in * kPanel);
  switch (format) {
    case Format::kFloat32:
      return count * 4;
    case Format::kBfloat16:
      return count * 2;
    case Format::kInt8:
      return count;
    default:
      return count / 2;
  }
}

size_t PackedMatrix::panel_scale_bytes() const {
  return block == 0 ? 0 : static_cast<size_t>(in / block * kPanel) * (half_scales ? 2 : 4);
}

bool fits_float16(const float* scales, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (reference::from_half(to_half(scales[i])) != scales[i]) return false;
  }
  return true;
}

const char* unpackable(const PackedMatrix& m) {
  if (m.in < 1 || m.out < 1) return "it is empty";
  if (m.in % 2 != 0) return "its number of inputs is odd";
  const bool integers = m.format == Format::kInt8 || m.format == Format::kInt4;
  if (integers != (m.block != 0)) return "integers need scales and floats have none";
  if (integers && (m.block % 32 != 0 || m.in % m.block != 0)) {
    return "the block size is not a multiple of 32 that divides the number of inputs";
  }
  return nullptr;
}

PackedMatrix packed_at(PackedMatrix m, const uint8_t* base) {
  m.values = base;
  m.scales = base + m.value_bytes();
  return m;
}

void pack(const PackedMatrix& m, const void* weight, const float* scales, uint8_t* target) {
  std::memset(target, 0, m.bytes());
  for (int64_t o = 0; o < m.out; ++o) {
    const int64_t panel = o / kPanel, lane = o % kPanel;
    uint8_t* values = target + static_cast<size_t>(panel) * m.panel_bytes();
    uint8_t* rows = target + m.value_bytes() + static_cast<size_t>(panel) * m.panel_scale_bytes();
    for (int64_t i = 0; i < m.in; ++i) {
      const int64_t at = i * m.out + o;
      if (m.format == Format::kFloat32) {
        std::memcpy(values + (i * kPanel + lane) * 4, static_cast<const uint8_t*>(weight) + at * 4, 4);
      } else if (m.format == Format::kBfloat16) {
        std::memcpy(values + ((i / 2 * kPanel + lane) * 2 + i % 2) * 2, static_cast<const uint8_t*>(weight) + at * 2,
                    2);
      } else if (m.format == Format::kInt8) {
        values[(i / 4 * kPanel + lane) * 4 + i % 4] =
            static_cast<uint8_t>(static_cast<const int8_t*>(weight)[at] + 128);
      } else {
        const int byte = static_cast<const uint8_t*>(weight)[at / 2];
        const int nibble = (at % 2 == 0 ? byte & 15 : byte >> 4) ^ 8;
        values[(i / 8 * kPanel + lane) * 4 + i % 4] |= static_cast<uint8_t>(i % 8 < 4 ? nibble : nibble << 4);
      }
    }
    for (int64_t i = 0; m.block != 0 && i < m.in / m.block; ++i) {
      const float scale = scales[i * m.out + o];
      const uint16_t half = to_half(scale);
      if (m.half_scales) {
        std::memcpy(rows + (i * kPanel + lane) * 2, &half, 2);
      } else {
        std::memcpy(rows + (i * kPanel + lane) * 4, &scale, 4);
      }
    }
  }
}

}  // namespace edge
