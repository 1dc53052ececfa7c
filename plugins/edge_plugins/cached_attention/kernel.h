// edge::CachedAttention: grouped-query attention over a cache of fixed capacity. Meaning and shapes: op.py.
#pragma once

#include <cstdint>

#include "../native/parallel.h"
#include "../native/types.h"

namespace edge {

// What the CPU's and the GPU's arguments share.
struct CachedAttentionShape {
  int64_t batch;
  int64_t length;  // may be 0
  int64_t heads;
  int64_t kv_heads;
  int64_t head_dim;
  int64_t capacity;
  int64_t window;  // keys that a query sees, its own included; 0 is all
  float scale;
  Type cache_type;  // float32, float16 or int8
};

struct CachedAttentionArgs : CachedAttentionShape {
  const float* query;          // (batch, length, heads * head_dim)
  const float* key;            // (batch, length, kv_heads * head_dim)
  const float* value;          // as key
  const int64_t* past_length;  // (batch); past_length + length <= capacity, else std::invalid_argument
  const void* past_key;        // (batch, kv_heads, capacity, head_dim)
  const void* past_value;
  const float* past_key_scale;  // (batch, kv_heads, capacity), int8 only
  const float* past_value_scale;
  float* y;           // (batch, length, heads * head_dim)
  void* present_key;  // may be past_key itself: then only the new rows are written
  void* present_value;
  float* present_key_scale;
  float* present_value_scale;
};

}  // namespace edge
