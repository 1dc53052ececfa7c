// Puts together what the blocks of split keys found.
#pragma once

#include "problem.cuh"

namespace edge::cuda::attention {

constexpr int kFewSplits = kWarps;  // for which a warp has a row, instead of a block

inline size_t combine_shared_bytes(const Problem& p) { return sizeof(float) * kWarps * p.head_dim; }

// Writes y. kFew: a grid (rows / kWarps, kv_heads, batch), a warp for each row. Otherwise (rows, kv_heads, batch), a
// block for each row: every warp adds up some of the splits, always the same ones, and shared memory is used.
template <bool kFew>
__global__ void __launch_bounds__(kThreads) combine(Problem p) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int row = kFew ? static_cast<int>(blockIdx.x) * kWarps + warp : static_cast<int>(blockIdx.x);
  if (row >= p.rows()) return;
  const int tile = row / p.tile_rows;
  const Work w = work_of(p, static_cast<int>(blockIdx.z), static_cast<int>(blockIdx.y), tile, 0);
  if (w.splits == 1) return;  // y is written already
  const float2* stats = p.partial_stats + partial_row_of(p, w, 0, row);
  const float* parts = p.partial_sums + partial_row_of(p, w, 0, row) * p.head_dim;
  const size_t split_rows = static_cast<size_t>(p.row_tiles) * p.tile_rows;

  float largest = kLowest, total = 0;
  for (int s = lane; s < w.splits; s += kWarp) largest = fmaxf(largest, stats[s * split_rows].x);
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, mask));
  }
  for (int s = lane; s < w.splits; s += kWarp) {
    const float2 part = stats[s * split_rows];
    total += part.y * fast_exp2(part.x - largest);
  }
  total = warp_sum(total);

  float sum[kMaxHeadDim / kWarp] = {};  // of dims lane, lane + 32, ...
  for (int s = kFew ? 0 : warp; s < w.splits; s += kFew ? 1 : kWarps) {
    const float weight = fast_exp2(stats[s * split_rows].x - largest);
    const float* part = parts + s * split_rows * p.head_dim;
    EDGE_UNROLL
    for (int j = 0; j < kMaxHeadDim / kWarp; ++j) {
      if (lane + j * kWarp < p.head_dim) sum[j] += part[lane + j * kWarp] * weight;
    }
  }
  const size_t at = offset_of(p, w, row);
  const float share = share_of(total);
  if constexpr (kFew) {
    EDGE_UNROLL
    for (int j = 0; j < kMaxHeadDim / kWarp; ++j) {
      const int d = lane + j * kWarp;
      if (d < p.head_dim) store_activation(p.type, p.y, at + d, sum[j] * share);
    }
  } else {
    EDGE_SHARED(memory);
    auto* sums = reinterpret_cast<float*>(memory);  // (kWarps, head_dim)
    EDGE_UNROLL
    for (int j = 0; j < kMaxHeadDim / kWarp; ++j) {
      const int d = lane + j * kWarp;
      if (d < p.head_dim) sums[warp * p.head_dim + d] = sum[j];
    }
    __syncthreads();
    for (int d = static_cast<int>(threadIdx.x); d < p.head_dim; d += kThreads) {
      float all = 0;
      for (int i = 0; i < kWarps; ++i) all += sums[i * p.head_dim + d];
      store_activation(p.type, p.y, at + d, all * share);
    }
  }
}

}  // namespace edge::cuda::attention
