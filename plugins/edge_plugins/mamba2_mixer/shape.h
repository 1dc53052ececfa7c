// The inputs of a Mamba2Mixer node and the sizes that follow from their shapes, for ort.cc and trt.cc.
#pragma once

#include <string>

#include "../native/tensor.h"
#include "kernel.h"

namespace edge::mamba2_mixer {

enum Input : size_t { kProj, kConvWeight, kConvBias, kDtBias, kALog, kD, kNormWeight, kPastConv, kPastSsm };

constexpr const char* kNames[] = {"proj", "conv_weight", "conv_bias", "dt_bias", "a_log",
                                  "d",    "norm_weight", "past_conv", "past_ssm"};

// Fills in heads, head_dim, state and kernel; `groups` is there already. `tensors` holds a Shaped for every parameter,
// by Input. Refuses parameters that contradict each other.
template <class Tensors>
void read_sizes(const Tensors& tensors, int64_t conv_dim, Mamba2MixerShape& shape) {
  const Shaped &weight = tensors[kConvWeight], &norm_weight = tensors[kNormWeight];
  shape.heads = tensors[kDtBias].rank == 1 ? tensors[kDtBias].dims[0] : 0;
  const int64_t inner = norm_weight.rank == 1 ? norm_weight.dims[0] : 0;
  shape.kernel = weight.rank == 2 ? weight.dims[1] : 0;
  shape.head_dim = shape.heads > 0 ? inner / shape.heads : 0;
  shape.state = shape.groups > 0 ? (conv_dim - inner) / (2 * shape.groups) : 0;
  const bool whole = shape.heads > 0 && shape.groups > 0 && shape.kernel > 1 && shape.heads % shape.groups == 0 &&
                     shape.head_dim > 0 && shape.state > 0 && inner == shape.heads * shape.head_dim &&
                     conv_dim == inner + 2 * shape.groups * shape.state;
  if (!whole) {
    refuse("The sizes of Mamba2Mixer",
           "conv_dim = heads * head_dim + 2 * groups * state, heads a multiple of groups, at least 2 taps",
           "conv_dim " + std::to_string(conv_dim) + ", groups " + std::to_string(shape.groups) + ", heads " +
               std::to_string(shape.heads) + ", inner " + std::to_string(inner) + ", taps " +
               std::to_string(shape.kernel),
           "Export the model again.");
  }
  weight.expect(kNames[kConvWeight], {conv_dim, shape.kernel});
  tensors[kConvBias].expect(kNames[kConvBias], {conv_dim});
  for (const size_t i : {kDtBias, kALog, kD}) tensors[i].expect(kNames[i], {shape.heads});
}

// Fills in batch and length. Refuses inputs and states that do not fit the sizes that read_sizes found.
inline void read_block(const Shaped& proj, const Shaped& past_conv, const Shaped& past_ssm, int64_t conv_dim,
                       Mamba2MixerShape& shape) {
  proj.expect(kNames[kProj], {-1, -1, shape.heads * shape.head_dim + conv_dim + shape.heads});
  shape.batch = proj.dims[0];
  shape.length = proj.dims[1];
  past_conv.expect(kNames[kPastConv], {shape.batch, conv_dim, shape.kernel - 1});
  past_ssm.expect(kNames[kPastSsm], {shape.batch, shape.heads, shape.head_dim, shape.state});
}

}  // namespace edge::mamba2_mixer
