// One call of Mamba2Mixer with random inputs.
#pragma once

#include "check.h"

namespace edge::test {

// Random inputs of one call and room for its outputs.
struct Mamba {
  Mamba(int64_t batch, int64_t length, int64_t heads, int64_t head_dim, int64_t groups, int64_t state, int64_t kernel,
        Type type, bool limited)
      : inner(heads * head_dim), conv_dim(inner + 2 * groups * state), width(inner + conv_dim + heads) {
    proj = Floats::normal(batch * length * width);
    conv_weight = Floats::normal(conv_dim * kernel, 0.5f);
    past_conv = Floats::normal(batch * conv_dim * (kernel - 1));
    Floats ssm = Floats::normal(batch * inner * state);
    past_ssm = present_ssm = as_type(ssm, type);
    conv_bias = Floats::normal(conv_dim, 0.1f);
    dt_bias = Floats::uniform(heads, -5, -1);
    a_log = Floats::uniform(heads, 0, 2.8f);
    d = Floats::normal(heads);
    norm_weight = Floats::uniform(inner, 0.5f, 1.5f);
    y = Floats(batch * length * inner, NAN);
    present_conv = Floats(past_conv.size(), NAN);
    std::fill(present_ssm.begin(), present_ssm.end(), uint8_t{0xff});
    args = {batch,
            length,
            heads,
            head_dim,
            groups,
            state,
            kernel,
            1e-5f,
            limited ? 0.01f : 0.0f,
            limited ? 0.1f : 3.4e38f,
            proj.data(),
            conv_weight.data(),
            conv_bias.data(),
            dt_bias.data(),
            a_log.data(),
            d.data(),
            norm_weight.data(),
            past_conv.data(),
            past_ssm.data(),
            type,
            y.data(),
            present_conv.data(),
            present_ssm.data()};
    name = " mamba2_mixer" + text({batch, length, heads, head_dim, groups, state, kernel, static_cast<int64_t>(type)});
  }

  int64_t inner, conv_dim, width;
  Floats proj{0}, conv_weight{0}, conv_bias{0}, dt_bias{0}, a_log{0}, d{0}, norm_weight{0}, past_conv{0}, y{0},
      present_conv{0};
  std::vector<uint8_t> past_ssm, present_ssm;
  Mamba2MixerArgs args;
  std::string name;
};

}  // namespace edge::test
