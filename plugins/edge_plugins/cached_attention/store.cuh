// Brings the cache up to date: passes on what it holds, and writes the new keys and values.
#pragma once

#include "cuda.h"
#include "problem.cuh"

namespace edge::cuda::attention {

// One array that may have to be copied.
struct Copied {
  const void* from;
  void* to;
  size_t bytes;
};

// A grid of any size copies one array.
__global__ void __launch_bounds__(kThreads) copy(Copied c) {
  const size_t threads = static_cast<size_t>(gridDim.x) * kThreads, wide = c.bytes / sizeof(uint4);
  const size_t thread = static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x;
  for (size_t i = thread; i < wide; i += threads) {
    static_cast<uint4*>(c.to)[i] = static_cast<const uint4*>(c.from)[i];
  }
  for (size_t i = wide * sizeof(uint4) + thread; i < c.bytes; i += threads) {
    static_cast<uint8_t*>(c.to)[i] = static_cast<const uint8_t*>(c.from)[i];
  }
}

// The new keys, or the new values.
struct Part {
  const void* from;  // (batch, length, kv_heads * head_dim)
  void* rows;        // (batch, kv_heads, capacity, head_dim)
  float* scales;     // (batch, kv_heads, capacity), int8 only
};

struct Stored {
  Type type, cache_type;
  int length, kv_heads, head_dim, capacity;
  const int64_t* past_length;
  Part keys, values;
};

// One warp's row of head_dim numbers, from the activations' element `from` to row `to` of the cache.
__device__ inline void store_float_row(const Stored& s, const Part& part, size_t from, size_t to) {
  for (int d = static_cast<int>(threadIdx.x) % kWarp; d < s.head_dim; d += kWarp) {
    const float value = load_activation(s.type, part.from, from + d);
    store_activation(s.cache_type, part.rows, to * s.head_dim + d, value);
  }
}

// The same in int8, rounded as op.py says.
__device__ inline void store_int8_row(const Stored& s, const Part& part, size_t from, size_t to) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  float largest = 0, spoilt = 0;
  for (int d = lane; d < s.head_dim; d += kWarp) {
    const float value = load_activation(s.type, part.from, from + d);
    largest = fmaxf(largest, fabsf(value));
    spoilt += value - value;  // 0, or NaN if it is not finite: the row is lost, and its scale shall say so
  }
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, mask));
    spoilt += __shfl_xor_sync(kAllLanes, spoilt, mask);
  }
  const float ratio = largest / 127.0f, scale = (ratio == 0 ? 1.0f : ratio) + spoilt;
  for (int d = lane; d < s.head_dim; d += kWarp) {
    const float rounded = rintf(load_activation(s.type, part.from, from + d) / scale);
    const float clipped = rounded >= -127.0f && rounded <= 127.0f ? rounded : 0.0f;
    static_cast<int8_t*>(part.rows)[to * s.head_dim + d] = static_cast<int8_t>(clipped);
  }
  if (lane == 0) part.scales[to] = scale;
}

// A grid (new rows of the cache / kWarps, 2, batch): a warp writes one row, of keys or of values.
__global__ void __launch_bounds__(kThreads, 4) store(Stored s) {
  const int row = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / kWarp;
  const int batch = static_cast<int>(blockIdx.z);
  const int t = row / s.kv_heads, kv_head = row % s.kv_heads;
  const int64_t past = s.past_length[batch];
  if (t >= s.length || past < -t || past >= s.capacity - t) return;  // no barrier follows, and warps stay whole
  const size_t from = ((static_cast<size_t>(batch) * s.length + t) * s.kv_heads + kv_head) * s.head_dim;
  const size_t to = (static_cast<size_t>(batch) * s.kv_heads + kv_head) * s.capacity + (past + t);
  const Part part = blockIdx.y == 0 ? s.keys : s.values;
  if (s.cache_type == Type::kInt8) {
    store_int8_row(s, part, from, to);
  } else {
    store_float_row(s, part, from, to);
  }
}

}  // namespace edge::cuda::attention
