// Token rows as a product with a packed matrix wants them: as they are, or rounded to int8 or bfloat16.
#pragma once

#include <algorithm>

#include "amx.h"
#include "packed.h"
#include "scratch.h"
#include "simd.h"

namespace edge::EDGE_ISA {

// How token rows are kept while they are multiplied; kTiles is bfloat16 for AMX.
enum class Rounding { kNone, kInt8, kBfloat16, kTiles };

constexpr int64_t kTileRows = 32;  // rows that AMX multiplies at once; for fewer it does not pay

// `rows` is about how many rows meet one matrix.
inline Rounding rounding_for(const PackedMatrix& weight, bool exact, [[maybe_unused]] int64_t rows) {
  if (exact || weight.format == Format::kFloat32) return Rounding::kNone;
#if defined(EDGE_AMX)
  if (rows >= kTileRows && weight.in % amx::kTileDepth == 0) return Rounding::kTiles;
#endif
  if (weight.quantized()) return Rounding::kInt8;
#if defined(__AVX512BF16__)
  return Rounding::kBfloat16;
#else
  return Rounding::kNone;
#endif
}

// Token rows, rounded for one weight format.
struct Rows {
  Rounding rounding;
  int64_t in;
  int64_t blocks;
  const float* floats;        // (tokens, in), where nothing is rounded
  const int8_t* bytes;        // (tokens, in)
  const float* scales;        // (tokens, blocks)
  const int32_t* starts;      // (tokens, blocks): what the unsigned weights' offset adds too much, negated
  const uint16_t* bfloat16s;  // (tokens, in)

  Rows from(int64_t token) const {
    Rows rest = *this;
    if (floats) rest.floats += token * in;
    if (bytes) rest.bytes += token * in, rest.scales += token * blocks, rest.starts += token * blocks;
    if (bfloat16s) rest.bfloat16s += token * in;
    return rest;
  }
};

namespace detail {

// What was added to the weights to make them unsigned.
inline int32_t offset_of(Format format) { return format == Format::kInt4 ? 8 : kSignedWeights ? 0 : 128; }

// Rounds one block to int8, x = scale * q; returns the scale, which is not finite where x is not.
inline float round_block(const float* x, int64_t block, int8_t* q, int32_t* total) {
  Ints most{};  // as bits, where infinity is larger than numbers and NaN larger than infinity
  for (int64_t i = 0; i < block; i += kWidth) most = larger(most, Ints(magnitude(load(x + i))));
  const float top = bits_to_float(static_cast<uint32_t>(largest(most)));
  const float inverse = top > 0 ? 127.0f / top : 0.0f;
  Ints sums{};
  for (int64_t i = 0; i < block; i += kWidth) {
    const Floats shifted = load(x + i) * inverse + 12582912.0f;  // the rounded integer stands in the low bits
    const Ints whole = Ints(Uints(shifted) << 24) >> 24;
    store(q + i, __builtin_convertvector(whole, Bytes));
    sums += whole;
  }
  *total = sum(sums);
  return top * (1.0f / 127.0f);
}

}  // namespace detail

// Rounds (tokens, in) floats into memory of the frame; tokens are independent of each other.
class RowsBuffer {
 public:
  RowsBuffer(Frame& frame, const PackedMatrix& weight, Rounding rounding, int64_t tokens)
      : offset_(detail::offset_of(weight.format)), block_(weight.block) {
    rows_ = {rounding, weight.in, weight.quantized() ? weight.in / weight.block : 0, nullptr, nullptr, nullptr,
             nullptr,  nullptr};
    if (rounding == Rounding::kInt8) {
      rows_.bytes = bytes_ = frame.take<int8_t>(tokens * weight.in);
      rows_.scales = scales_ = frame.take<float>(tokens * rows_.blocks);
      rows_.starts = starts_ = frame.take<int32_t>(tokens * rows_.blocks);
    } else if (rounding != Rounding::kNone) {
      rows_.bfloat16s = bfloat16s_ = frame.take<uint16_t>((tokens + kTileRows) * weight.in);
      std::fill_n(bfloat16s_ + (tokens * weight.in), kTileRows * weight.in, uint16_t{0});  // tiles are read whole
    }
  }

  // Whether fill() has to be called; otherwise the rows are the floats themselves.
  bool rounds() const { return rows_.rounding != Rounding::kNone; }

  void fill(int64_t token, const float* x) const {
    const int64_t at = token * rows_.in;
    if (rows_.rounding == Rounding::kInt8) {
      for (int64_t b = 0; b < rows_.blocks; ++b) {
        int32_t total = 0;
        const int64_t slot = (token * rows_.blocks) + b;
        scales_[slot] = detail::round_block(x + (b * block_), block_, bytes_ + at + (b * block_), &total);
        starts_[slot] = -offset_ * total;
      }
    } else if (rounds()) {
      int64_t i = 0;
      for (; i + kWidth <= rows_.in; i += kWidth) store(bfloat16s_ + at + i, round_to_bfloat16(load(x + i)));
      for (; i < rows_.in; ++i) bfloat16s_[at + i] = float_to_bfloat16(x[i]);
    }
  }

  // Copies a rounded row from other rows of the same rounding.
  void copy(int64_t token, const Rows& from, int64_t source) const {
    const Rows row = from.from(source);
    if (bytes_) {
      std::copy_n(row.bytes, rows_.in, bytes_ + (token * rows_.in));
      std::copy_n(row.scales, rows_.blocks, scales_ + (token * rows_.blocks));
      std::copy_n(row.starts, rows_.blocks, starts_ + (token * rows_.blocks));
    }
    if (bfloat16s_) std::copy_n(row.bfloat16s, rows_.in, bfloat16s_ + (token * rows_.in));
  }

  Rows rows(const float* floats) const {
    Rows rows = rows_;
    if (!rounds()) rows.floats = floats;
    return rows;
  }

 private:
  Rows rows_;
  int32_t offset_;
  int64_t block_;
  int8_t* bytes_ = nullptr;
  float* scales_ = nullptr;
  int32_t* starts_ = nullptr;
  uint16_t* bfloat16s_ = nullptr;
};

}  // namespace edge::EDGE_ISA
