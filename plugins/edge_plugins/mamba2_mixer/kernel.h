// edge::Mamba2Mixer: what stands between in_proj and out_proj. Meaning and shapes: op.py.
#pragma once

#include <cstdint>

#include "../native/parallel.h"
#include "../native/types.h"

namespace edge {

// What CPU and GPU are told in the same words.
struct Mamba2MixerShape {
  int64_t batch;
  int64_t length;  // may be 0
  int64_t heads;
  int64_t head_dim;
  int64_t groups;
  int64_t state;
  int64_t kernel;  // taps of the convolution, at least 2
  float eps;
  float dt_min;
  float dt_max;
};

// The widths that follow.
struct Mamba2MixerSizes {
  explicit constexpr Mamba2MixerSizes(const Mamba2MixerShape& a)
      : inner(a.heads * a.head_dim),
        bc(a.groups * a.state),
        conv_dim(inner + 2 * bc),
        proj_dim(inner + conv_dim + a.heads),
        group_heads(a.heads / a.groups),
        past(a.kernel - 1) {}

  int64_t inner;        // width of x and z
  int64_t bc;           // width of B and of C
  int64_t conv_dim;     // channels of the convolution: x, B, C
  int64_t proj_dim;     // z, x, B, C, dt
  int64_t group_heads;  // heads that share B and C
  int64_t past;         // positions in the convolution's state
};

struct Mamba2MixerArgs : Mamba2MixerShape {
  const float* proj;         // (batch, length, 2 inner + 2 groups state + heads)
  const float* conv_weight;  // (conv_dim, kernel)
  const float* conv_bias;    // (conv_dim)
  const float* dt_bias;      // (heads)
  const float* a_log;        // (heads)
  const float* d;            // (heads)
  const float* norm_weight;  // (inner)
  const float* past_conv;    // (batch, conv_dim, kernel - 1)
  const void* past_ssm;      // (batch, heads, head_dim, state) of ssm_type
  Type ssm_type;             // float32, float16 or bfloat16
  float* y;                  // (batch, length, inner)
  float* present_conv;       // may be past_conv itself
  void* present_ssm;         // may be past_ssm itself
};

}  // namespace edge
