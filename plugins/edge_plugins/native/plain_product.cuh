// Rows times a weight in float32, for whatever tensor cores do not take: float32 itself and odd sizes.
#pragma once

#include "product_inputs.cuh"
#include "row_tiles.cuh"

namespace edge::cuda {

constexpr int kPlainRows = 8;
constexpr int kPlainColumns = 128;  // a thread has one
constexpr int kPlainStep = 128;     // inputs in shared memory at a time

__device__ inline float stored_value(const Weight& weight, int64_t index) {
  switch (weight.format) {
    case WeightFormat::kFloat32:
      return static_cast<const float*>(weight.values)[index];
    case WeightFormat::kFloat16:
      return to_float(static_cast<const float16*>(weight.values)[index]);
    case WeightFormat::kBfloat16:
      return to_float(static_cast<const bfloat16*>(weight.values)[index]);
    case WeightFormat::kInt8:
      return static_cast<float>(static_cast<const int8_t*>(weight.values)[index]);
    case WeightFormat::kInt4: {
      const int both = static_cast<const uint8_t*>(weight.values)[index / 2];
      const int nibble = index % 2 == 0 ? both & 15 : both >> 4;
      return static_cast<float>((nibble ^ 8) - 8);
    }
  }
  return 0;
}

__device__ inline float weight_value(const Weight& weight, int matrix, int k, int column) {
  const float value = stored_value(weight, (matrix * weight.in + k) * weight.out + column);
  if (weight.block == 0) return value;
  const int64_t scale_row = matrix * (weight.in / weight.block) + k / weight.block;
  return value * weight.scales[scale_row * weight.out + column];
}

// Grid: (tiles of 128 columns, tiles of 8 rows). T is what inputs are rounded to.
template <class T, class Reader>
__global__ void __launch_bounds__(kPlainColumns)
    plain_product(RowGroups groups, Weight weight, Reader read, PartialSums outputs) {
  EDGE_SHARED(memory);
  auto* inputs = reinterpret_cast<float*>(memory);  // (8, kPlainStep)
  const int thread = static_cast<int>(threadIdx.x), in = static_cast<int>(weight.in);
  const RowTile tile = find_tile<kPlainRows>(groups, static_cast<int>(blockIdx.y));
  if (tile.count == 0) return;
  const int column = static_cast<int>(blockIdx.x) * kPlainColumns + thread;
  float sums[kPlainRows] = {};
  for (int first = 0; first < in; first += kPlainStep) {
    const int count = min(kPlainStep, in - first);
    for (int row = 0; row < kPlainRows; ++row) {
      const bool valid = row < tile.count && thread < count;
      const float value = valid ? read(tile.first + row, first + thread) : 0.0f;
      inputs[row * kPlainStep + thread] = to_float(from_float<T>(value));
    }
    __syncthreads();
    for (int k = 0; k < count && column < outputs.out; ++k) {
      const float value = weight_value(weight, tile.matrix, first + k, column);
      EDGE_UNROLL
      for (int row = 0; row < kPlainRows; ++row) sums[row] += inputs[row * kPlainStep + k] * value;
    }
    __syncthreads();
  }
  if (column >= outputs.out) return;
  EDGE_UNROLL
  for (int row = 0; row < kPlainRows; ++row) {
    if (row < tile.count) outputs.sums[static_cast<int64_t>(tile.first + row) * outputs.out + column] = sums[row];
  }
}

}  // namespace edge::cuda
