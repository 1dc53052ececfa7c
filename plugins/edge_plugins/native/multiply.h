// The float32 matrix product that the scan and the attention are made of: small operands that stay in the cache.
#pragma once

#include <algorithm>

#include "simd.h"

namespace edge::EDGE_ISA {

// Registers that hold one tile of the result: rows times vectors.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kSumRows = 6;
constexpr int kSumVectors = 4;
#else
constexpr int kSumRows = 6;
constexpr int kSumVectors = 2;
#endif

// c = a b, or c += a b. Row-major; rows of a lie a_stride floats apart, and so on.
struct Product {
  int64_t rows;
  int64_t columns;  // a multiple of kWidth
  int64_t depth;
  const float* a;
  int64_t a_stride;
  const float* b;
  int64_t b_stride;
  float* c;
  int64_t c_stride;
  bool add;
};

namespace detail {

template <int kRows, int kVectors>
inline void multiply_tile(const Product& p, int64_t row, int64_t column) {
  const float* a = p.a + (row * p.a_stride);
  const float* b = p.b + column;
  float* c = p.c + (row * p.c_stride) + column;
  Floats sums[kRows][kVectors] = {};
  for (int64_t k = 0; k < p.depth; ++k, b += p.b_stride) {
    Floats right[kVectors];
    for (int j = 0; j < kVectors; ++j) right[j] = load(b + (j * kWidth));
    for (int i = 0; i < kRows; ++i) {
      const Floats left = splat(a[(i * p.a_stride) + k]);
      for (int j = 0; j < kVectors; ++j) sums[i][j] += left * right[j];
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kVectors; ++j) {
      float* to = c + (i * p.c_stride) + (j * kWidth);
      store(to, p.add ? load(to) + sums[i][j] : sums[i][j]);
    }
  }
}

template <int kRows, int kVectors>
inline void multiply_last_rows(const Product& p, int64_t row, int64_t column) {
  if constexpr (kRows > 0) {
    if (p.rows - row == kRows) return multiply_tile<kRows, kVectors>(p, row, column);
    multiply_last_rows<kRows - 1, kVectors>(p, row, column);
  }
}

template <int kVectors>
inline void multiply_columns(const Product& p, int64_t column) {
  int64_t row = 0;
  for (; row + kSumRows <= p.rows; row += kSumRows) multiply_tile<kSumRows, kVectors>(p, row, column);
  multiply_last_rows<kSumRows - 1, kVectors>(p, row, column);
}

template <int kVectors>
inline void multiply_last_columns(const Product& p, int64_t column) {
  if constexpr (kVectors > 0) {
    if (p.columns - column == kVectors * kWidth) return multiply_columns<kVectors>(p, column);
    multiply_last_columns<kVectors - 1>(p, column);
  }
}

}  // namespace detail

[[gnu::noinline]] inline void multiply(const Product& p) {
  constexpr int64_t step = kSumVectors * kWidth;
  int64_t column = 0;
  for (; column + step <= p.columns; column += step) detail::multiply_columns<kSumVectors>(p, column);
  detail::multiply_last_columns<kSumVectors - 1>(p, column);
}

}  // namespace edge::EDGE_ISA
