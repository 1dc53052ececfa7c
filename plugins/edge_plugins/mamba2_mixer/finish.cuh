// The end of every call: y's gate and norm, and the convolution's state.
//
// Why a kernel of its own, also after a single token: a group's norm needs all blocks of the scan. They could count
// themselves in, and the last one go on; but the workspace begins as anything at every call (engines share it between
// layers), so that the counter would need a kernel of its own before the scan. And B and C's carried inputs, which all
// of a group's blocks read, may be overwritten in place here without asking who has read them.
#pragma once

#include <algorithm>

#include "mixer.cuh"

namespace edge::cuda {

constexpr int kFinishThreads = 256;  // of a block, at most
constexpr int kFinishChannels = 4;   // of a thread, at least: what a block costs beside its channels is shared by them

inline unsigned finish_threads(int64_t width) {
  const int64_t warps = (width + kFinishChannels * kWarp - 1) / (kFinishChannels * kWarp);
  return static_cast<unsigned>(std::min<int64_t>(warps * kWarp, kFinishThreads));
}

// Shared memory: a group's gated values of one position, and a sum of each warp.
inline size_t finish_shared_bytes(int64_t width) {
  return (static_cast<size_t>(width) + kFinishThreads / kWarp) * sizeof(float);
}

// The sum over all threads of the block, the same in each; `sums` has room for one of every warp.
__device__ inline float block_sum(float value, float* sums) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value += __shfl_xor_sync(kAllLanes, value, mask);
  if (lane == 0) sums[warp] = value;
  __syncthreads();
  float total = 0;
  for (unsigned w = 0; w < blockDim.x / kWarp; ++w) total += sums[w];
  return total;
}

// scanned * SiLU(z), RMS-normalised over a group's channels, the first of which is `channel`, times the weight.
template <class T>
__device__ inline void gate_and_normalise(const Call& a, int64_t position, int channel, const float* scanned,
                                          float* gated) {
  const int width = a.s.width, threads = static_cast<int>(blockDim.x);
  const T* z = static_cast<const T*>(a.proj) + (position * a.s.proj_dim) + channel;
  const float* from = scanned + (position * a.s.inner) + channel;
  float squares = 0;
  for (int i = static_cast<int>(threadIdx.x); i < width; i += threads) {
    gated[i] = from[i] * silu(to_float(z[i]));
    squares += gated[i] * gated[i];
  }
  const float mean = block_sum(squares, gated + width) / static_cast<float>(width);
  const float scale = 1.0f / sqrtf(mean + a.eps);
  T* to = static_cast<T*>(a.y) + (position * a.s.inner) + channel;
  for (int i = static_cast<int>(threadIdx.x); i < width; i += threads) {
    to[i] = from_float<T>(gated[i] * scale * a.norm_weight[channel + i]);
  }
}

// The last kernel - 1 inputs of `count` channels. In place, what is read is never before what is written.
template <class T>
__device__ inline void carry_inputs(const Call& a, int64_t batch, int channel, int count) {
  for (int c = channel + static_cast<int>(threadIdx.x); c < channel + count; c += static_cast<int>(blockDim.x)) {
    const ConvInputs<T> inputs(a, batch, c, a.length);
    float* now = a.present_conv + (((batch * a.s.conv_dim) + c) * a.s.past);
    for (int tap = 0; tap < a.s.past; ++tap) now[tap] = inputs.load(a.s.past - tap).value();
  }
}

// grid: (batch * positions, groups), where positions is the length, or 1 where that is 0.
template <class T>
__global__ void __launch_bounds__(kFinishThreads) finish(Call a, const float* scanned) {
  EDGE_SHARED(memory);
  const int group = static_cast<int>(blockIdx.y);
  const int positions = a.length > 0 ? static_cast<int>(a.length) : 1;
  const int batch = static_cast<int>(blockIdx.x) / positions, t = static_cast<int>(blockIdx.x) % positions;
  if (a.length > 0) {
    gate_and_normalise<T>(a, blockIdx.x, group * a.s.width, scanned, reinterpret_cast<float*>(memory));
  }
  if (t != positions - 1) return;
  carry_inputs<T>(a, batch, group * a.s.width, a.s.width);
  carry_inputs<T>(a, batch, a.s.inner + (group * a.s.state), a.s.state);
  carry_inputs<T>(a, batch, a.s.inner + a.s.bc + (group * a.s.state), a.s.state);
}

}  // namespace edge::cuda
