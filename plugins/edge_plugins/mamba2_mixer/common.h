// What one token and many have in common: sizes, the time step, the norm, how the state is stored.
#pragma once

#include <algorithm>
#include <cmath>

#include "../native/simd.h"
#include "kernel.h"

namespace edge::EDGE_ISA {
namespace {

using Sizes = Mamba2MixerSizes;

void silu_in_place(float* x, int64_t count) {
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) store(x + i, silu(load(x + i)));
  if (i == count) return;
  float rest[kWidth] = {};
  std::copy(x + i, x + count, rest);
  store(rest, silu(load(rest)));
  std::copy_n(rest, count - i, x + i);
}

float time_step(const Mamba2MixerArgs& a, const float* proj_row, int64_t head) {
  const float raw = proj_row[(2 * a.heads * a.head_dim) + (2 * a.groups * a.state) + head] + a.dt_bias[head];
  const float step = raw > 20.0f ? raw : std::log1p(std::exp(raw));
  const float raised = step < a.dt_min ? a.dt_min : step;
  return raised > a.dt_max ? a.dt_max : raised;
}

// RMS norm of one group's channels of a gated y row, in place, times the weight.
void normalise(const Mamba2MixerArgs& a, float* y, const float* weight) {
  const int64_t width = a.heads / a.groups * a.head_dim;
  float squares = 0;
  int64_t i = 0;
  Floats total{};
  for (; i + kWidth <= width; i += kWidth) total += load(y + i) * load(y + i);
  for (; i < width; ++i) squares += y[i] * y[i];
  const float scale = 1.0f / std::sqrt((squares + sum(total)) / static_cast<float>(width) + a.eps);
  for (i = 0; i < width; ++i) y[i] = y[i] * scale * weight[i];
}

template <Type kType>
Floats load_state(const void* state, int64_t index) {
  if constexpr (kType == Type::kFloat32) return load(static_cast<const float*>(state) + index);
  const auto* half = static_cast<const uint16_t*>(state) + index;
  if constexpr (kType == Type::kFloat16) return load_float16(half);
  return widen_bfloat16(load<Halves>(half));
}

template <Type kType>
void store_state(void* state, int64_t index, Floats v) {
  if constexpr (kType == Type::kFloat32) {
    store(static_cast<float*>(state) + index, v);
  } else if constexpr (kType == Type::kFloat16) {
    store_float16(static_cast<uint16_t*>(state) + index, v);
  } else {
    store(static_cast<uint16_t*>(state) + index, round_to_bfloat16(v));
  }
}

float load_one(Type type, const void* state, int64_t index) {
  if (type == Type::kFloat32) return static_cast<const float*>(state)[index];
  const uint16_t half = static_cast<const uint16_t*>(state)[index];
  return type == Type::kFloat16 ? float16_to_float(half) : bfloat16_to_float(half);
}

void store_one(Type type, void* state, int64_t index, float x) {
  if (type == Type::kFloat32) {
    static_cast<float*>(state)[index] = x;
  } else {
    static_cast<uint16_t*>(state)[index] = type == Type::kFloat16 ? float_to_float16(x) : float_to_bfloat16(x);
  }
}

}  // namespace
}  // namespace edge::EDGE_ISA
