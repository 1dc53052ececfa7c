// Element types of states and caches.
#pragma once

#include <cstddef>
#include <cstdint>

namespace edge {

enum class Type { kFloat32, kFloat16, kBfloat16, kInt8 };

constexpr size_t size_of(Type type) { return type == Type::kFloat32 ? 4 : type == Type::kInt8 ? 1 : 2; }

}  // namespace edge
