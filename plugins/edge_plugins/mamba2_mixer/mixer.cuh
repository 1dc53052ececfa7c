// What the mixer's kernels have in common: where things stand, the convolution, the time step.
#pragma once

#include "../native/pack.cuh"
#include "cuda.h"

namespace edge::cuda {

// A call as kernels take it: with the sizes in 32 bits, in which a GPU divides and multiplies quickly.
struct Call : Mamba2MixerArgs {
  explicit Call(const Mamba2MixerArgs& args) : Mamba2MixerArgs(args), s(args) {}

  struct Sizes {
    explicit Sizes(const Mamba2MixerShape& shape) : Sizes(shape, Mamba2MixerSizes(shape)) {}
    Sizes(const Mamba2MixerShape& shape, const Mamba2MixerSizes& sizes)
        : head_dim(static_cast<int>(shape.head_dim)),
          state(static_cast<int>(shape.state)),
          past(static_cast<int>(sizes.past)),
          inner(static_cast<int>(sizes.inner)),
          bc(static_cast<int>(sizes.bc)),
          conv_dim(static_cast<int>(sizes.conv_dim)),
          proj_dim(static_cast<int>(sizes.proj_dim)),
          group_heads(static_cast<int>(sizes.group_heads)),
          width(group_heads * head_dim) {}

    int head_dim, state, past, inner, bc, conv_dim, proj_dim, group_heads;  // as in kernel.h
    int width;                                                              // of a group's part of x, y and z
  } s;
};

// A position's row of proj: z (inner), x (inner), B and C (groups * state each), dt (heads).
template <class T>
__device__ inline const T* proj_row(const Call& a, int64_t batch, int64_t t) {
  return static_cast<const T*>(a.proj) + (((batch * a.length) + t) * a.s.proj_dim);
}

// To some units in the last place of a float32, in five instructions; the exact division alone would be ten.
__device__ inline float silu(float x) { return __fdividef(x, 1.0f + __expf(-x)); }

// What the convolution reads of a channel, going back from a position; before the first one are the carried inputs.
template <class T>
class ConvInputs {
 public:
  __device__ ConvInputs(const Call& a, int64_t batch, int channel, int64_t t)
      : here_(proj_row<T>(a, batch, t) + a.s.inner + channel),
        carried_(a.past_conv + (((batch * a.s.conv_dim) + channel) * a.s.past) + a.s.past),
        stride_(a.s.proj_dim),
        t_(t) {}

  // As it is stored, so that loads can be under way together: conversions wait for them.
  struct Stored {
    float carried;
    T now;
    bool is_carried;
    __device__ float value() const { return is_carried ? carried : to_float(now); }
  };
  __device__ Stored load(int back) const {
    Stored input = {0, T{}, t_ < back};
    if (input.is_carried) input.carried = carried_[t_ - back];
    if (!input.is_carried) input.now = here_[-static_cast<int64_t>(back) * stride_];
    return input;
  }

 private:
  const T* here_;
  const float* carried_;
  int stride_;
  int64_t t_;
};

// Four of a channel's weights, 0 behind the last. One load where weights come in fours, as in all published models.
__device__ inline float4 load_taps(const Call& a, const float* weight, int tap) {
  if (a.kernel % 4 == 0) return *reinterpret_cast<const float4*>(weight + tap);
  const int left = static_cast<int>(a.kernel) - tap;
  return make_float4(weight[tap], left > 1 ? weight[tap + 1] : 0.0f, left > 2 ? weight[tap + 2] : 0.0f,
                     left > 3 ? weight[tap + 3] : 0.0f);
}

constexpr int kTapsAtOnce = 4;  // whose loads are under way together: all of them in all published models

// Convolution and SiLU of one channel at one position.
template <class T>
__device__ inline float convolve(const Call& a, int64_t batch, int channel, int64_t t) {
  const ConvInputs<T> inputs(a, batch, channel, t);
  const float* weight = a.conv_weight + (static_cast<int64_t>(channel) * a.kernel);
  float value = a.conv_bias[channel];
  for (int first = a.s.past; first >= 0; first -= kTapsAtOnce) {
    typename ConvInputs<T>::Stored x[kTapsAtOnce] = {};
    EDGE_UNROLL
    for (int i = 0; i < kTapsAtOnce; ++i) {
      if (i <= first) x[i] = inputs.load(first - i);
    }
    const float4 w = load_taps(a, weight, a.s.past - first);
    value += w.x * x[0].value() + w.y * x[1].value() + w.z * x[2].value() + w.w * x[3].value();
  }
  return silu(value);
}

// dt of one head at one position: softplus, then the limits.
template <class T>
__device__ inline float time_step(const Call& a, int64_t batch, int head, int64_t t) {
  const float raw = to_float(proj_row<T>(a, batch, t)[a.s.inner + a.s.conv_dim + head]) + a.dt_bias[head];
  const float step = raw > 20.0f ? raw : log1pf(expf(raw));
  const float raised = step < a.dt_min ? a.dt_min : step;
  return raised > a.dt_max ? a.dt_max : raised;
}

// a of one head, at most 0: its state decays by exp(dt a).
__device__ inline float rate(const Call& a, int head) { return -expf(a.a_log[head]); }

}  // namespace edge::cuda
