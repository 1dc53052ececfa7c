// Neighbours that move together.
#pragma once

#include "device.h"

namespace edge::cuda {

constexpr int kPackBytes = 16;

// Neighbours that one instruction moves: up to kPackBytes, at a multiple of their size.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T values[kCount];
};

// Moves kCount neighbours at once, at a multiple of their size: T in memory, float in registers.
template <class T, int kCount>
__device__ inline void load_floats(const T* from, float (&to)[kCount]) {
  if constexpr (sizeof(T) == 2 && kCount % 2 == 0) {
    const auto pairs = *reinterpret_cast<const Pack<uint32_t, kCount / 2>*>(from);
    EDGE_UNROLL
    for (int i = 0; i < kCount / 2; ++i) {
      const float2 two = unpack<T>(pairs.values[i]);
      to[2 * i] = two.x, to[2 * i + 1] = two.y;
    }
  } else {
    const auto pack = *reinterpret_cast<const Pack<T, kCount>*>(from);
    EDGE_UNROLL
    for (int i = 0; i < kCount; ++i) to[i] = to_float(pack.values[i]);
  }
}

template <class T, int kCount>
__device__ inline void store_floats(T* to, const float (&from)[kCount]) {
  if constexpr (sizeof(T) == 2 && kCount % 2 == 0) {
    Pack<uint32_t, kCount / 2> pairs;
    EDGE_UNROLL
    for (int i = 0; i < kCount / 2; ++i) pairs.values[i] = pack<T>(from[2 * i], from[2 * i + 1]);
    *reinterpret_cast<Pack<uint32_t, kCount / 2>*>(to) = pairs;
  } else {
    Pack<T, kCount> pack;
    EDGE_UNROLL
    for (int i = 0; i < kCount; ++i) pack.values[i] = from_float<T>(from[i]);
    *reinterpret_cast<Pack<T, kCount>*>(to) = pack;
  }
}

}  // namespace edge::cuda
