// edge::Mamba2Mixer on a GPU. Meaning and shapes: op.py.
#pragma once

#include "../native/stream.h"
#include "../native/types.h"
#include "kernel.h"

namespace edge::cuda {

struct Mamba2MixerArgs : Mamba2MixerShape {
  Type type;                 // of proj and y: float32, float16 or bfloat16
  Type ssm_type;             // of past_ssm and present_ssm: float32, float16 or bfloat16
  const void* proj;          // (batch, length, 2 inner + 2 groups state + heads)
  const float* conv_weight;  // (conv_dim, kernel)
  const float* conv_bias;    // (conv_dim)
  const float* dt_bias;      // (heads)
  const float* a_log;        // (heads)
  const float* d;            // (heads)
  const float* norm_weight;  // (inner)
  const float* past_conv;    // (batch, conv_dim, kernel - 1)
  const void* past_ssm;      // (batch, heads, head_dim, state)
  void* y;                   // (batch, length, inner)
  float* present_conv;       // may be past_conv itself
  void* present_ssm;         // may be past_ssm itself
};

// Why these shapes and types cannot be computed, or nullptr. Looks at no pointer.
const char* mamba2_mixer_unsupported(const Mamba2MixerArgs& args);

// Bytes of device memory that a call needs for itself, at an address that divides by 16. Looks at no pointer, and
// grows with batch and length.
size_t mamba2_mixer_workspace(const Mamba2MixerArgs& args);

// Starts the kernels on `stream`. All addresses divide by 16; the workspace may begin as anything. With arrivals
// (native/arrivals.h), which may be null, a single token takes one kernel.
void mamba2_mixer(const Mamba2MixerArgs& args, void* workspace, uint32_t* arrivals, Stream stream);

}  // namespace edge::cuda
