// The inputs of a CachedAttention node and the sizes that follow from their shapes, for ort.cc and trt.cc.
#pragma once

#include <string>

#include "../native/tensor.h"
#include "kernel.h"

namespace edge::cached_attention {

enum Input : size_t { kQuery, kKey, kValue, kPastLength, kPastKey, kPastValue, kPastKeyScale, kPastValueScale };

inline void check_window(int64_t window) {
  if (window >= 0) return;
  refuse("The attribute window of CachedAttention", "at least 0", std::to_string(window), "Export the model again.");
}

// Fills in all sizes. Refuses tensors that contradict each other.
inline void read_sizes(const Shaped& query, const Shaped& key, const Shaped& value, const Shaped& past_length,
                       const Shaped& past_key, const Shaped& past_value, CachedAttentionShape& shape) {
  query.expect("query", {-1, -1, -1});
  past_key.expect("past_key", {query.dims[0], -1, -1, -1});
  shape.batch = query.dims[0];
  shape.length = query.dims[1];
  shape.kv_heads = past_key.dims[1];
  shape.capacity = past_key.dims[2];
  shape.head_dim = past_key.dims[3];
  const int64_t key_width = shape.kv_heads * shape.head_dim;
  if (key_width <= 0 || query.dims[2] % key_width != 0) {
    refuse("The last axis of query", "a multiple of " + std::to_string(key_width), query.shape(),
           "Export the model again.");
  }
  shape.heads = query.dims[2] / shape.head_dim;
  key.expect("key", {shape.batch, shape.length, key_width});
  value.expect("value", {shape.batch, shape.length, key_width});
  past_length.expect("past_length", {shape.batch});
  past_value.expect("past_value", {shape.batch, shape.kv_heads, shape.capacity, shape.head_dim});
}

// Refuses scales beside a float cache, and an int8 cache without.
inline void check_scales(bool scaled, Type cache_type) {
  if (scaled == (cache_type == Type::kInt8)) return;
  refuse("The scales of CachedAttention", scaled ? "an int8 cache" : "past_key_scale and past_value_scale",
         scaled ? "a float cache" : "none", "Export the model again.");
}

inline void check_scale_shapes(const Shaped& key_scale, const Shaped& value_scale, const CachedAttentionShape& shape) {
  key_scale.expect("past_key_scale", {shape.batch, shape.kv_heads, shape.capacity});
  value_scale.expect("past_value_scale", {shape.batch, shape.kv_heads, shape.capacity});
}

}  // namespace edge::cached_attention
