// Puts together what the blocks of split keys found.
#pragma once

#include "problem.cuh"

namespace edge::cuda::attention {

inline size_t combine_shared_bytes(const Problem& p) { return sizeof(float) * kWarps * p.head_dim; }

// A grid (rows, kv_heads, batch) writes y, one row each. Every warp adds up some of the splits, always the same ones.
__global__ void __launch_bounds__(kThreads) combine(Problem p) {
  EDGE_SHARED(memory);
  auto* sums = reinterpret_cast<float*>(memory);  // (kWarps, head_dim)
  const int row = static_cast<int>(blockIdx.x), tile = row / p.tile_rows;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
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
  for (int mask = kWarp / 2; mask > 0; mask /= 2) total += __shfl_xor_sync(kAllLanes, total, mask);

  float sum[kMaxHeadDim / kWarp] = {};  // of dims lane, lane + 32, ...
  for (int s = warp; s < w.splits; s += kWarps) {
    const float weight = fast_exp2(stats[s * split_rows].x - largest);
    const float* part = parts + s * split_rows * p.head_dim;
    EDGE_UNROLL
    for (int j = 0; j < kMaxHeadDim / kWarp; ++j) {
      if (lane + j * kWarp < p.head_dim) sum[j] += part[lane + j * kWarp] * weight;
    }
  }
  EDGE_UNROLL
  for (int j = 0; j < kMaxHeadDim / kWarp; ++j) {
    if (lane + j * kWarp < p.head_dim) sums[warp * p.head_dim + lane + j * kWarp] = sum[j];
  }
  __syncthreads();
  const size_t at = offset_of(p, w, row);
  for (int d = static_cast<int>(threadIdx.x); d < p.head_dim; d += kThreads) {
    float all = 0;
    for (int i = 0; i < kWarps; ++i) all += sums[i * p.head_dim + d];
    store_activation(p.type, p.y, at + d, all * share_of(total));
  }
}

}  // namespace edge::cuda::attention
