// Stand-in: the slow reference.
#include <stdexcept>

#include "../../tests/reference.h"

namespace edge::EDGE_ISA {
namespace {

void store(const CachedAttentionArgs& a, const float* source, void* cache, float* scales, int64_t row) {
  float largest = 0;
  for (int64_t d = 0; d < a.head_dim; ++d) largest = std::max(largest, std::abs(source[d]));
  const float scale = largest / 127 == 0 ? 1 : largest / 127;
  for (int64_t d = 0; d < a.head_dim; ++d) {
    const int64_t at = row * a.head_dim + d;
    if (a.cache_type == Type::kFloat32) {
      static_cast<float*>(cache)[at] = source[d];
    } else if (a.cache_type == Type::kFloat16) {
      static_cast<uint16_t*>(cache)[at] = reference::to_half(source[d]);
    } else {
      static_cast<int8_t*>(cache)[at] = static_cast<int8_t>(std::nearbyint(source[d] / scale));
    }
  }
  if (a.cache_type == Type::kInt8) scales[row] = scale;
}

}  // namespace

void cached_attention(const CachedAttentionArgs& a, const Parallel&) {
  const size_t rows = static_cast<size_t>(a.batch * a.kv_heads * a.capacity);
  const size_t bytes = rows * static_cast<size_t>(a.head_dim) * size_of(a.cache_type);
  for (int64_t b = 0; b < a.batch; ++b) {
    if (a.past_length[b] < 0 || a.past_length[b] + a.length > a.capacity) {
      throw std::invalid_argument("past_length: expected at most the cache's capacity less the new positions.");
    }
  }
  if (a.present_key != a.past_key) std::memcpy(a.present_key, a.past_key, bytes);
  if (a.present_value != a.past_value) std::memcpy(a.present_value, a.past_value, bytes);
  if (a.cache_type == Type::kInt8) {
    if (a.present_key_scale != a.past_key_scale) std::copy_n(a.past_key_scale, rows, a.present_key_scale);
    if (a.present_value_scale != a.past_value_scale) std::copy_n(a.past_value_scale, rows, a.present_value_scale);
  }
  for (int64_t i = 0; i < a.batch * a.length * a.kv_heads; ++i) {
    const int64_t head = i % a.kv_heads, b = i / (a.kv_heads * a.length), t = i / a.kv_heads % a.length;
    const int64_t row = (b * a.kv_heads + head) * a.capacity + a.past_length[b] + t;
    store(a, a.key + i * a.head_dim, a.present_key, a.present_key_scale, row);
    store(a, a.value + i * a.head_dim, a.present_value, a.present_value_scale, row);
  }
  const auto y = reference::cached_attention(a);
  std::transform(y.begin(), y.end(), a.y, [](double v) { return static_cast<float>(v); });
}

}  // namespace edge::EDGE_ISA
