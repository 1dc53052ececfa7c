#include "packed.h"

#include <cmath>
#include <cstring>

#include "half.h"

namespace edge {

size_t PackedMatrix::panel_bytes() const {
  const auto weights = static_cast<size_t>(in * kPanel);
  switch (format) {
    case Format::kFloat32:
      return weights * 4;
    case Format::kBfloat16:
      return weights * 2;
    case Format::kInt8:
      return weights;
    case Format::kInt4:
      return weights / 2;
  }
  return 0;
}

size_t PackedMatrix::panel_scale_bytes() const {
  return quantized() ? static_cast<size_t>(in / block * kPanel) * (half_scales ? 2 : 4) : 0;
}

bool fits_float16(const float* scales, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (float16_to_float(float_to_float16(scales[i])) != scales[i]) return false;
  }
  return true;
}

const char* unpackable(const PackedMatrix& shape) {
  const bool integers = shape.format == Format::kInt8 || shape.format == Format::kInt4;
  if (shape.in < 1 || shape.out < 1) return "a matrix without elements";
  if (integers != shape.quantized()) return "integers need a block size, floats have none";
  if (integers && shape.block % 32 != 0) return "the block size is not a multiple of 32";
  if (integers && shape.in % shape.block != 0) return "the input width is not a multiple of the block size";
  if (shape.format == Format::kBfloat16 && shape.in % 2 != 0) return "the input width is odd";
  return nullptr;
}

namespace {

struct Element {
  int64_t in;
  int64_t out;
};

// Calls put(slot, from) for every element of a panel whose `group` inputs stand together; from.out may lie outside.
template <class Put>
void for_each_slot(const PackedMatrix& shape, int64_t panel, int64_t group, const Put& put) {
  for (int64_t in = 0; in < shape.in; in += group) {
    for (int64_t column = 0; column < kPanel; ++column) {
      for (int64_t part = 0; part < group; ++part) {
        put((in * kPanel) + (column * group) + part, Element{in + part, (panel * kPanel) + column});
      }
    }
  }
}

template <class T>
void pack_floats(const PackedMatrix& shape, const T* weight, int64_t panel, int64_t group, T* target) {
  for_each_slot(shape, panel, group, [&](int64_t slot, Element from) {
    target[slot] = from.out < shape.out ? weight[(from.in * shape.out) + from.out] : T{0};
  });
}

void pack_int8(const PackedMatrix& shape, const int8_t* weight, int64_t panel, uint8_t* target) {
  for_each_slot(shape, panel, 4, [&](int64_t slot, Element from) {
    const int value = from.out < shape.out ? weight[(from.in * shape.out) + from.out] : 0;
    target[slot] = static_cast<uint8_t>(value + 128);
  });
}

// The unsigned form, 0..15 with 8 for zero, of one int4 of an ONNX tensor.
uint8_t int4_at(const PackedMatrix& shape, const uint8_t* weight, Element from) {
  if (from.out >= shape.out) return 8;
  const int64_t index = (from.in * shape.out) + from.out;
  const int nibble = index % 2 ? weight[index / 2] >> 4 : weight[index / 2] & 15;
  return static_cast<uint8_t>(nibble ^ 8);
}

void pack_int4(const PackedMatrix& shape, const uint8_t* weight, int64_t panel, uint8_t* target) {
  for (int64_t in = 0; in < shape.in; in += 8) {
    for (int64_t column = 0; column < kPanel; ++column) {
      for (int64_t part = 0; part < 4; ++part) {
        const int64_t out = (panel * kPanel) + column;
        const uint8_t low = int4_at(shape, weight, {in + part, out});
        const uint8_t high = int4_at(shape, weight, {in + 4 + part, out});
        *target++ = static_cast<uint8_t>(low | (high << 4));
      }
    }
  }
}

void pack_scales(const PackedMatrix& shape, const float* scales, int64_t panel, uint8_t* target) {
  for (int64_t block = 0; block < shape.in / shape.block; ++block) {
    for (int64_t column = 0; column < kPanel; ++column) {
      const int64_t out = (panel * kPanel) + column;
      const float scale = out < shape.out ? scales[(block * shape.out) + out] : 0.0f;
      const int64_t slot = (block * kPanel) + column;
      const uint16_t half = float_to_float16(scale);
      if (shape.half_scales) {
        std::memcpy(target + (2 * slot), &half, 2);
      } else {
        std::memcpy(target + (4 * slot), &scale, 4);
      }
    }
  }
}

}  // namespace

void pack(const PackedMatrix& shape, const void* weight, const float* scales, uint8_t* target) {
  for (int64_t panel = 0; panel < shape.panels(); ++panel, target += shape.panel_bytes()) {
    switch (shape.format) {
      case Format::kFloat32:
        pack_floats(shape, static_cast<const float*>(weight), panel, 1, reinterpret_cast<float*>(target));
        break;
      case Format::kBfloat16:
        pack_floats(shape, static_cast<const uint16_t*>(weight), panel, 2, reinterpret_cast<uint16_t*>(target));
        break;
      case Format::kInt8:
        pack_int8(shape, static_cast<const int8_t*>(weight), panel, target);
        break;
      case Format::kInt4:
        pack_int4(shape, static_cast<const uint8_t*>(weight), panel, target);
        break;
    }
  }
  if (!shape.quantized()) return;
  for (int64_t panel = 0; panel < shape.panels(); ++panel, target += shape.panel_scale_bytes()) {
    pack_scales(shape, scales, panel, target);
  }
}

PackedMatrix packed_at(PackedMatrix shape, const uint8_t* base) {
  shape.values = base;
  shape.scales = shape.quantized() ? base + shape.value_bytes() : nullptr;
  return shape;
}

}  // namespace edge
