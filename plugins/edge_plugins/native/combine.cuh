// Puts together what belongs to a token: the products of its experts, or of one matrix alone (Combination).
#pragma once

#include "pack.cuh"
#include "weight_products.h"

namespace edge::cuda {

// How products are read, kPer neighbouring columns of a row: a product's slices, added up in their order, or rows.
struct SumReader {
  PartialSums sums;

  template <int kPer>
  __device__ void read(int row, int column, float (&to)[kPer]) const {
    EDGE_UNROLL
    for (int i = 0; i < kPer; ++i) to[i] = 0;
    const float* from = sums.sums + (static_cast<int64_t>(row) * sums.out + column);
    for (int slice = 0; slice < sums.slices; ++slice, from += static_cast<int64_t>(sums.rows) * sums.out) {
      float part[kPer];
      load_floats(from, part);
      EDGE_UNROLL
      for (int i = 0; i < kPer; ++i) to[i] += part[i];
    }
  }
};

template <class T>
struct RowReader {
  const T* rows;
  int width;

  template <int kPer>
  __device__ void read(int row, int column, float (&to)[kPer]) const {
    load_floats(rows + (static_cast<int64_t>(row) * width + column), to);
  }
};

// kPer columns of a token, from `column` on: y (tokens, width).
template <class T, int kPer, class Reader>
__device__ inline void combine_columns(const Combination& c, const Reader& reader, int token, int column, T* y) {
  float sums[kPer] = {};
  for (int k = 0; k < c.top_k; ++k) {
    const int slot = token * c.top_k + k;
    const float share = c.shares == nullptr ? 1.0f : c.shares[slot];
    float product[kPer];
    reader.read(c.position == nullptr ? slot : c.position[slot], column, product);
    EDGE_UNROLL
    for (int i = 0; i < kPer; ++i) sums[i] += share * product[i];
  }
  store_floats(y + (static_cast<int64_t>(token) * c.width + column), sums);
}

}  // namespace edge::cuda
