// edge::Mamba2Mixer: what stands between in_proj and out_proj. Meaning and shapes: op.py.
#pragma once

#include <cstdint>

#include "../native/parallel.h"
#include "../native/types.h"

namespace edge {

struct Mamba2MixerArgs {
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
