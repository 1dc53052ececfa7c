// Intel AMX: products of bfloat16 tiles. Where EDGE_EMULATE_AMX is defined, the same code on a model of the tiles.
//
// The model exists so that everything around the seven instructions is tested on any machine.
#pragma once

#include "simd.h"

#if defined(__AMX_BF16__) || defined(EDGE_EMULATE_AMX)
#define EDGE_AMX 1

namespace edge::EDGE_ISA::amx {

constexpr int kTile = 16;       // rows of a tile, and float32 columns
constexpr int kTileDepth = 32;  // bfloat16 inputs that one instruction multiplies

#if defined(EDGE_EMULATE_AMX)

struct Tile {
  alignas(64) uint8_t bytes[16][64];
};

inline Tile& tile(int index) {
  thread_local Tile tiles[8];
  return tiles[index];
}

inline void emulate_load(int index, const void* from, int64_t stride) {
  for (int r = 0; r < 16; ++r) std::memcpy(tile(index).bytes[r], static_cast<const uint8_t*>(from) + (r * stride), 64);
}

inline void emulate_store(int index, void* to, int64_t stride) {
  for (int r = 0; r < 16; ++r) std::memcpy(static_cast<uint8_t*>(to) + (r * stride), tile(index).bytes[r], 64);
}

inline void emulate_dot(int sum, int left, int right) {
  for (int m = 0; m < 16; ++m) {
    for (int k = 0; k < 16; ++k) {
      for (int n = 0; n < 16; ++n) {
        uint16_t a[2], b[2];
        float c;
        std::memcpy(a, &tile(left).bytes[m][4 * k], 4);
        std::memcpy(b, &tile(right).bytes[k][4 * n], 4);
        std::memcpy(&c, &tile(sum).bytes[m][4 * n], 4);
        c += bfloat16_to_float(a[0]) * bfloat16_to_float(b[0]) + bfloat16_to_float(a[1]) * bfloat16_to_float(b[1]);
        std::memcpy(&tile(sum).bytes[m][4 * n], &c, 4);
      }
    }
  }
}

#define EDGE_TILE_LOAD(index, from, stride) emulate_load(index, from, stride)
#define EDGE_TILE_STORE(index, to, stride) emulate_store(index, to, stride)
#define EDGE_TILE_DOT(sum, left, right) emulate_dot(sum, left, right)

class Configured {};

#else

// The intrinsics are macros that paste the tile's number into the instruction's name.
#define EDGE_TILE_LOAD(index, from, stride) _tile_loadd(index, from, stride)
#define EDGE_TILE_STORE(index, to, stride) _tile_stored(index, to, stride)
#define EDGE_TILE_DOT(sum, left, right) _tile_dpbf16ps(sum, left, right)

// All eight tiles have 16 rows of 64 bytes while this lives.
class Configured {
 public:
  Configured() {
    alignas(64) uint8_t config[64] = {1};  // palette 1
    for (int t = 0; t < 8; ++t) {
      config[16 + (2 * t)] = 64;
      config[48 + t] = 16;
    }
    // gcc 12 believes that the instruction reads 8 bytes only and would drop the other stores.
    asm volatile("" : : "r"(config) : "memory");
    _tile_loadconfig(config);
  }
  ~Configured() { _tile_release(); }
  Configured(const Configured&) = delete;
  Configured& operator=(const Configured&) = delete;
};

#endif

// sums (32, 64 floats wide rows; 32 columns from `column`) += left (32 rows, left_stride apart) times right, which is
// (depth / 2, 64, 2) bfloat16. depth is a multiple of 32. Needs a Configured.
inline void multiply_32x32(const uint16_t* left, int64_t left_stride, const uint16_t* right, int64_t depth,
                           int64_t column, float* sums) {
  constexpr int64_t row = 64 * 4;  // bytes of a row of sums, and of a row of right
  float* c = sums + column;
  const uint16_t* b = right + (column * 2);
  EDGE_TILE_LOAD(0, c, row);
  EDGE_TILE_LOAD(1, c + kTile, row);
  EDGE_TILE_LOAD(2, c + (kTile * 64), row);
  EDGE_TILE_LOAD(3, c + (kTile * 64) + kTile, row);
  for (int64_t k = 0; k < depth; k += kTileDepth) {
    EDGE_TILE_LOAD(4, left + k, left_stride * 2);
    EDGE_TILE_LOAD(5, left + (kTile * left_stride) + k, left_stride * 2);
    EDGE_TILE_LOAD(6, b + (k * 64), row);
    EDGE_TILE_LOAD(7, b + (k * 64) + (kTile * 2), row);
    EDGE_TILE_DOT(0, 4, 6);
    EDGE_TILE_DOT(1, 4, 7);
    EDGE_TILE_DOT(2, 5, 6);
    EDGE_TILE_DOT(3, 5, 7);
  }
  EDGE_TILE_STORE(0, c, row);
  EDGE_TILE_STORE(1, c + kTile, row);
  EDGE_TILE_STORE(2, c + (kTile * 64), row);
  EDGE_TILE_STORE(3, c + (kTile * 64) + kTile, row);
}

}  // namespace edge::EDGE_ISA::amx

#endif
