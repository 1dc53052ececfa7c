// edge::CachedAttention on GPUs. Meaning and shapes: op.py.
#pragma once

#include "../native/stream.h"
#include "kernel.h"

namespace edge::cuda {

// All pointers are the device's, at multiples of 16 bytes. With narrow activations beside a float16 or int8 cache,
// queries, keys and values beyond float16's 65504 count as infinite (tensor.cuh).
struct CachedAttentionArgs : CachedAttentionShape {
  Type type;                   // of query, key, value and y: float32, float16 or bfloat16
  const void* query;           // (batch, length, heads * head_dim)
  const void* key;             // (batch, length, kv_heads * head_dim)
  const void* value;           // as key
  const int64_t* past_length;  // (batch); what would go beyond the capacity is not stored: a GPU cannot raise an error
  const void* past_key;        // (batch, kv_heads, capacity, head_dim)
  const void* past_value;
  const float* past_key_scale;  // (batch, kv_heads, capacity), int8 only
  const float* past_value_scale;
  void* y;            // (batch, length, heads * head_dim)
  void* present_key;  // may be past_key itself: then only the new rows are written
  void* present_value;
  float* present_key_scale;
  float* present_value_scale;
};

// Why such shapes and types cannot be had, or nullptr.
const char* cached_attention_unsupported(const CachedAttentionArgs& args);

// Bytes that `workspace` must have; from shapes and types alone, and no less for larger ones.
size_t cached_attention_workspace(const CachedAttentionArgs& args);

// Throws std::invalid_argument for what is unsupported.
void cached_attention(const CachedAttentionArgs& args, void* workspace, Stream stream);

}  // namespace edge::cuda
