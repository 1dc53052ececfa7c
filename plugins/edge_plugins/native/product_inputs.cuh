// How the kernels for few rows read their inputs, one number at a time, in float32.
#pragma once

#include "device.h"
#include "weight_products.h"

namespace edge::cuda {

// What stands between two products; `gate` is the other half's value where there is one.
__device__ inline float activate(Activation activation, float value, float gate) {
  switch (activation) {
    case Activation::kRelu2: {
      const float positive = value > 0 ? value : (value == value ? 0.0f : value);  // NaN stays
      return positive * positive;
    }
    case Activation::kGelu:
      return 0.5f * value * (1.0f + erff(value * 0.70710678f));
    case Activation::kSiluGated:
      return gate / (1.0f + expf(-gate)) * value;
    case Activation::kNone:
      break;
  }
  return value;
}

// The sum of a product's slices, in their order.
__device__ inline float sum_slices(const PartialSums& p, int row, int column) {
  float sum = 0;
  for (int slice = 0; slice < p.slices; ++slice) {
    sum += p.sums[(static_cast<int64_t>(slice) * p.rows + row) * p.out + column];
  }
  return sum;
}

template <class T>
struct PlainReader {
  const T* x;             // (any, in)
  const int32_t* source;  // (rows), or null
  int in;

  __device__ float operator()(int row, int k) const {
    const int64_t at = source == nullptr ? row : source[row];
    return to_float(x[at * in + k]);
  }
};

struct ActivatedReader {
  Activation activation;
  PartialSums risen;  // [gate | value] side by side if gated

  __device__ float operator()(int row, int k) const {
    if (activation != Activation::kSiluGated) return activate(activation, sum_slices(risen, row, k), 0);
    return activate(activation, sum_slices(risen, row, risen.out / 2 + k), sum_slices(risen, row, k));
  }
};

}  // namespace edge::cuda
