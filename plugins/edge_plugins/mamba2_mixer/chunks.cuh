// Many tokens, before the scan: the convolution, the time steps, and C B^T of every chunk.
//
// State-space duality (Dao and Gu 2024, arXiv 2405.21060, section 6): within a chunk of positions the scan is a masked
// product of C, B and x, between chunks a state is carried. What the heads of a group share is made here, once for all
// of them; chunk_scan.cuh does the rest.
#pragma once

#include "mixer.cuh"

namespace edge::cuda {

constexpr int kChunk = 64;      // positions
constexpr int kTile = 16;       // rows of a tensor core's left operand; also how deep one product is
constexpr int kRowPadding = 8;  // values: rows in shared memory begin 16 bytes apart in the banks, for ldmatrix
constexpr int kMostTaps = 4;    // of the convolution
constexpr int kMostPast = kMostTaps - 1;

// Where the kernels of a long call leave things for each other. T is the type of proj.
struct ChunkRoom {
  void* xbc;     // (batch, length, conv_dim) of T: x, B and C after convolution and SiLU
  void* scores;  // (batch, chunks, groups, kChunk, kChunk) of T: C B^T, on and below the diagonal
  float* dt;     // (batch, heads, chunks, kChunk): time steps, 0 behind the last position
  float* decay;  // (batch, heads, chunks, kChunk): sums of dt a from the chunk's first position, itself included
};

__host__ __device__ inline int64_t chunks_of(int64_t length) { return (length + kChunk - 1) / kChunk; }

// Copies a chunk's rows of `columns` values to shared memory in the background, zeros where none are.
template <class T>
__device__ inline void copy_rows(T* to, int columns, const T* from, int64_t from_stride, int there, int columns_there) {
  constexpr int kPiece = 16 / sizeof(T);
  const int pieces = columns / kPiece;
  for (int i = static_cast<int>(threadIdx.x); i < kChunk * pieces; i += static_cast<int>(blockDim.x)) {
    const int row = i / pieces, column = i % pieces * kPiece;
    const bool valid = row < there && column < columns_there;
    copy_async(to + (row * (columns + kRowPadding)) + column, valid ? from + (row * from_stride) + column : from,
               valid);
  }
}

// ---- Convolution ----

constexpr int kConvolveThreads = 128;
constexpr int kConvolvePair = 2;  // channels of a thread, where pairs of them can be moved
constexpr int kStrip = 16;        // positions of a thread

// A channel's weights, weight[back] that of the input so many positions before.
__device__ inline void load_weights(const Call& a, int channel, float (&weight)[kMostTaps]) {
  const float* taps = a.conv_weight + (channel * a.kernel);
  if (a.kernel == kMostTaps) {
    const float4 four = load_taps(a, taps, 0);
    weight[3] = four.x, weight[2] = four.y, weight[1] = four.z, weight[0] = four.w;
    return;
  }
  EDGE_UNROLL
  for (int back = 0; back < kMostTaps; ++back) weight[back] = back <= a.s.past ? taps[a.s.past - back] : 0.0f;
}

// The inputs before the first position, oldest first, `stride` apart; those beyond the convolution's reach stay.
__device__ inline void load_carried(const Call& a, int64_t batch, int channel, float* x, int stride) {
  const float* carried = a.past_conv + (((batch * a.s.conv_dim) + channel) * a.s.past);
  EDGE_UNROLL
  for (int back = 1; back <= kMostPast; ++back) {
    if (back <= a.s.past) x[(kMostPast - back) * stride] = carried[a.s.past - back];
  }
}

// grid: (blocks of channels, strips, batch). A thread reads its channels' inputs once, all under way together.
template <class T, int kPer>
__global__ void __launch_bounds__(kConvolveThreads) convolve_all(Call a, T* xbc) {
  constexpr int kInputs = kMostPast + kStrip;
  const int channel = static_cast<int>(blockIdx.x * kConvolveThreads + threadIdx.x) * kPer;
  const int64_t start = static_cast<int64_t>(blockIdx.y) * kStrip, batch = blockIdx.z;
  if (channel >= a.s.conv_dim) return;
  const int there = static_cast<int>(min(a.length - start, int64_t{kStrip}));
  float x[kInputs][kPer] = {};  // from the strip's first position - kMostPast on
  const T* from = proj_row<T>(a, batch, start - kMostPast) + a.s.inner + channel;
  EDGE_UNROLL
  for (int i = 0; i < kInputs; ++i, from += a.s.proj_dim) {
    const bool is_here = i < kMostPast ? start > 0 : i - kMostPast < there;
    if (is_here) load_floats(from, x[i]);
  }
  float weight[kPer][kMostTaps], bias[kPer];
  EDGE_UNROLL
  for (int c = 0; c < kPer; ++c) {
    if (start == 0) load_carried(a, batch, channel + c, &x[0][c], kPer);
    load_weights(a, channel + c, weight[c]);
    bias[c] = a.conv_bias[channel + c];
  }
  T* to = xbc + (((batch * a.length) + start) * a.s.conv_dim) + channel;
  EDGE_UNROLL
  for (int i = 0; i < kStrip; ++i, to += a.s.conv_dim) {
    float y[kPer];
    EDGE_UNROLL
    for (int c = 0; c < kPer; ++c) {
      float value = bias[c];
      EDGE_UNROLL
      for (int back = 0; back < kMostTaps; ++back) value += weight[c][back] * x[kMostPast + i - back][c];
      y[c] = silu(value);
    }
    if (i < there) store_floats(to, y);
  }
}

// ---- What a group's heads share in a chunk ----

constexpr int kScoreThreads = kChunk / kTile * kWarp;  // a warp has 16 rows of the scores

inline size_t score_shared_bytes(int64_t state) {
  return 2 * kChunk * static_cast<size_t>(state + kRowPadding) * sizeof(uint16_t);
}

// dt and the sums of dt a over one chunk of one head, by one warp: two positions a lane.
template <class T>
__device__ inline void sum_time_steps(const Call& a, const ChunkRoom& room, int64_t batch, int head, int64_t chunk) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t t = (chunk * kChunk) + (2 * lane);
  const float dt[2] = {t < a.length ? time_step<T>(a, batch, head, t) : 0.0f,
                       t + 1 < a.length ? time_step<T>(a, batch, head, t + 1) : 0.0f};
  const float slope = rate(a, head), first = dt[0] * slope, both = first + dt[1] * slope;
  float sum = both;  // of all lanes up to this one
  for (int by = 1; by < kWarp; by *= 2) {
    const float before = __shfl_up_sync(kAllLanes, sum, by);
    if (lane >= by) sum += before;
  }
  const float earlier = __shfl_up_sync(kAllLanes, sum, 1);
  const float start = lane == 0 ? 0.0f : earlier;
  const int64_t at = ((((batch * a.heads) + head) * chunks_of(a.length)) + chunk) * kChunk + (2 * lane);
  *reinterpret_cast<Pack<float, 2>*>(room.dt + at) = {dt[0], dt[1]};
  *reinterpret_cast<Pack<float, 2>*>(room.decay + at) = {start + first, start + both};
}

// One warp's 16 rows of C B^T up to the diagonal; b and c are (kChunk, state) in shared memory.
template <class T>
__device__ inline void score_rows(const T* b, const T* c, int state, int rows, T* scores) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, stride = state + kRowPadding;
  float sums[kChunk / 8][4] = {};
  for (int n = 0; n < state; n += kTile) {
    uint32_t left[4];
    load_matrices(left, c + ((rows + lane % 16) * stride) + n + (lane / 16 * 8));
    EDGE_UNROLL
    for (int j = 0; j < kChunk; j += kTile) {
      if (j > rows) continue;
      uint32_t right[4];
      load_matrices(right, b + ((j + (lane / 16 * 8) + lane % 8) * stride) + n + (lane / 8 % 2 * 8));
      mma_16x8x16<T>(sums[j / 8], left, {right[0], right[1]});
      mma_16x8x16<T>(sums[(j / 8) + 1], left, {right[2], right[3]});
    }
  }
  EDGE_UNROLL
  for (int j = 0; j < kChunk / 8; ++j) {
    EDGE_UNROLL
    for (int half = 0; half < 2; ++half) {
      T* to = scores + ((rows + lane / 4 + (8 * half)) * kChunk) + (j * 8) + (lane % 4 * 2);
      *reinterpret_cast<uint32_t*>(to) = pack<T>(sums[j][2 * half], sums[j][(2 * half) + 1]);
    }
  }
}

// grid: (chunks, groups, batch).
template <class T>
__global__ void __launch_bounds__(kScoreThreads) prepare_chunks(Call a, ChunkRoom room) {
  EDGE_SHARED(memory);
  const int64_t chunk = blockIdx.x, batch = blockIdx.z, start = chunk * kChunk;
  const int group = static_cast<int>(blockIdx.y), state = a.s.state, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int there = static_cast<int>(min(a.length - start, int64_t{kChunk}));
  T* b = reinterpret_cast<T*>(memory);
  T* c = b + (kChunk * (state + kRowPadding));
  const T* from = static_cast<const T*>(room.xbc) + (((batch * a.length) + start) * a.s.conv_dim) + a.s.inner;
  copy_rows(b, state, from + (group * state), a.s.conv_dim, there, state);
  copy_rows(c, state, from + a.s.bc + (group * state), a.s.conv_dim, there, state);
  commit_async();
  for (int h = warp; h < a.s.group_heads; h += kScoreThreads / kWarp) {
    sum_time_steps<T>(a, room, batch, (group * a.s.group_heads) + h, chunk);
  }
  wait_async<0>();
  __syncthreads();
  const int64_t at = (((batch * chunks_of(a.length)) + chunk) * a.groups) + group;
  score_rows(b, c, state, warp * kTile, static_cast<T*>(room.scores) + (at * kChunk * kChunk));
}

}  // namespace edge::cuda
