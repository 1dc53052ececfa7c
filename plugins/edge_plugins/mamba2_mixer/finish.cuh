// The end of every call of more than one token: y's gate and norm, and the convolution's state.
//
// A kernel of its own, for a group's norm needs all blocks of the scan; and B and C's carried inputs, which all of a
// group's blocks read, may be overwritten in place here without asking who has read them.
#pragma once

#include <algorithm>

#include "mixer.cuh"

namespace edge::cuda {

constexpr int kFinishThreads = 256;  // of a block, at most
constexpr int kFinishChannels = 8;   // of a thread, at least: what a block costs beside its channels is shared by them

inline unsigned finish_threads(int64_t width) {
  const int64_t warps = (width + kFinishChannels * kWarp - 1) / (kFinishChannels * kWarp);
  return static_cast<unsigned>(std::min<int64_t>(warps * kWarp, kFinishThreads));
}

// Shared memory: a group's gated values of one position, and a sum of each warp.
inline size_t finish_shared_bytes(int64_t width) {
  return (static_cast<size_t>(width) + kFinishThreads / kWarp) * sizeof(float);
}

// The sum over all threads of the block, for the warps that want it; `sums` has room for one of every warp.
__device__ inline float block_sum(float value, float* sums, bool wanted = true) {
  const unsigned lane = threadIdx.x % kWarp;
  value = warp_sum(value);
  if (lane == 0) sums[threadIdx.x / kWarp] = value;
  __syncthreads();
  return wanted ? warp_sum(lane < blockDim.x / kWarp ? sums[lane] : 0.0f) : 0.0f;
}

// What a group's values are multiplied by, beside the weight, from the sum of their squares.
__device__ inline float norm_scale(const Call& a, float squares) {
  return 1.0f / sqrtf(squares / static_cast<float>(a.s.width) + a.eps);
}

// scanned * SiLU(z), RMS-normalised over a group's channels, the first of which is `channel`, times the weight.
template <class T, int kPer>
__device__ inline void gate_and_normalise(const Call& a, int64_t position, int channel, const float* scanned,
                                          float* gated) {
  const int width = a.s.width, first = static_cast<int>(threadIdx.x) * kPer, step = static_cast<int>(blockDim.x) * kPer;
  const T* z = static_cast<const T*>(a.proj) + (position * a.s.proj_dim) + channel;
  const float* from = scanned + (position * a.s.inner) + channel;
  float squares = 0;
  for (int i = first; i < width; i += step) {
    float values[kPer], gates[kPer];
    load_floats(from + i, values);
    load_floats(z + i, gates);
    EDGE_UNROLL
    for (int c = 0; c < kPer; ++c) {
      values[c] *= silu(gates[c]);
      squares += values[c] * values[c];
    }
    store_floats(gated + i, values);
  }
  const float scale = norm_scale(a, block_sum(squares, gated + width));
  T* to = static_cast<T*>(a.y) + (position * a.s.inner) + channel;
  for (int i = first; i < width; i += step) {
    float values[kPer], weights[kPer];
    load_floats(gated + i, values);
    load_floats(a.norm_weight + channel + i, weights);
    EDGE_UNROLL
    for (int c = 0; c < kPer; ++c) values[c] *= scale * weights[c];
    store_floats(to + i, values);
  }
}

// The last kernel - 1 inputs of a channel. In place, what is read is never before what is written.
template <class T>
__device__ inline void carry_channel(const Call& a, int64_t batch, int channel) {
  const ConvInputs<T> inputs(a, batch, channel, a.length);
  float* now = a.present_conv + (((batch * a.s.conv_dim) + channel) * a.s.past);
  for (int first = 0; first < a.s.past; first += kTapsAtOnce) {
    typename ConvInputs<T>::Stored x[kTapsAtOnce] = {};
    EDGE_UNROLL
    for (int i = 0; i < kTapsAtOnce; ++i) {
      if (first + i < a.s.past) x[i] = inputs.load(a.s.past - first - i);
    }
    EDGE_UNROLL
    for (int i = 0; i < kTapsAtOnce; ++i) {
      if (first + i < a.s.past) now[first + i] = x[i].value();
    }
  }
}

// Those of a group's B and C.
template <class T>
__device__ inline void carry_bc(const Call& a, int64_t batch, int group) {
  for (int i = static_cast<int>(threadIdx.x); i < 2 * a.s.state; i += static_cast<int>(blockDim.x)) {
    const int n = i < a.s.state ? i : a.s.bc + i - a.s.state;
    carry_channel<T>(a, batch, a.s.inner + (group * a.s.state) + n);
  }
}

// grid: (batch * positions, groups), where positions is the length, or 1 where that is 0. kPer: channels moved at once.
template <class T, int kPer>
__global__ void __launch_bounds__(kFinishThreads) finish(Call a, const float* scanned) {
  EDGE_SHARED(memory);
  const int group = static_cast<int>(blockIdx.y);
  const int positions = a.length > 0 ? static_cast<int>(a.length) : 1;
  const int batch = static_cast<int>(blockIdx.x) / positions, t = static_cast<int>(blockIdx.x) % positions;
  if (a.length > 0) {
    gate_and_normalise<T, kPer>(a, blockIdx.x, group * a.s.width, scanned, reinterpret_cast<float*>(memory));
  }
  if (t != positions - 1) return;
  for (int i = static_cast<int>(threadIdx.x); i < a.s.width; i += static_cast<int>(blockDim.x)) {
    carry_channel<T>(a, batch, group * a.s.width + i);
  }
  carry_bc<T>(a, batch, group);
}

}  // namespace edge::cuda
