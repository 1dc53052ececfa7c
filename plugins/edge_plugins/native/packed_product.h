// Products of token rows with a packed matrix, panel by panel.
//
// Integer weights meet activations rounded to int8 by the weights' own blocks (as llama.cpp's Q8_0 activations are):
// within a block the sum is exact, and blocks are added in order in float32, so a row's result does not depend on how
// many rows there are. What has no such weights, or asks to be exact, is expanded to float32 or multiplied as bfloat16.
#pragma once

#include <algorithm>
#include <cmath>

#include "multiply.h"
#include "token_rows.h"

namespace edge::EDGE_ISA {
namespace detail {

#if defined(__AVX512F__)
constexpr int kDotRows = 3;
constexpr int kDotVectors = 4;
#elif defined(__aarch64__)
constexpr int kDotRows = 4;
constexpr int kDotVectors = 2;
#else
constexpr int kDotRows = 2;
constexpr int kDotVectors = 2;
#endif
constexpr int64_t kChunk = 256;       // inputs whose weights stay in the first-level cache, about
constexpr int64_t kRowsAtOnce = 256;  // token rows whose sums stay in the second-level cache

// Up to so many rows, int4 weights are taken apart again for every tile, and a panel is not cut into chunks. Measured
// on Zen 5: with VNNI that is faster up to 256 rows (by 30 % at 8), without it up to 9; elsewhere nothing was measured.
#if defined(__AVX512F__) || defined(__AVXVNNI__)
constexpr int64_t kFewRows = 64;
#else
constexpr int64_t kFewRows = 4;
#endif

// Bytes that a product reads ahead: the hardware stops at each page. On Zen 5 with two threads that gives a single row
// a fifth more of the memory's rate, twice as far nothing.
constexpr int64_t kAhead = 4096;

// How a line of weights (64 outputs, four bytes each) is stored.
enum class Line { kInt8, kInt4, kBytes };

inline Floats load_scales(const uint8_t* scales, bool half, int64_t index) {
  return half ? load_float16(scales + (2 * index)) : load(scales + (4 * index));
}

// A panel's weights over some blocks.
struct PanelChunk {
  const uint8_t* lines;
  const uint8_t* scales;
  bool half_scales;
  int64_t block;
  int64_t blocks;
};

inline Ints low_half(Ints line) { return line & 0x0f0f0f0f; }
inline Ints high_half(Ints line) { return Ints((Uints(line) >> 4) & 0x0f0f0f0fu); }

template <Line kLine>
inline Ints ready(Ints line) {
  if constexpr (kLine == Line::kInt8 && kSignedWeights) return line ^ splat(int32_t(0x80808080u));
  return line;
}

template <int kRows, int kVectors>
using Dots = Ints[kRows][kVectors];

// dots += kRows rows of int8 (x_stride apart) times one block of kVectors vectors of outputs.
template <Line kLine, int kRows, int kVectors>
inline void dot_block(const uint8_t* line, int64_t block, const int8_t* x, int64_t x_stride,
                      Dots<kRows, kVectors>& dots) {
  constexpr int64_t inputs = kLine == Line::kInt4 ? 8 : 4;
  for (int64_t k = 0; k < block; k += inputs, line += kPanel * 4) {
    Ints weights[kVectors];
    for (int j = 0; j < kVectors; ++j) {
      if constexpr (kLine != Line::kBytes) __builtin_prefetch(line + kAhead + (j * kWidth * 4));
      weights[j] = ready<kLine>(load<Ints>(line + (j * kWidth * 4)));
      keep(weights[j]);
    }
    for (int i = 0; i < kRows; ++i) {
      const FourBytes first(x + (i * x_stride) + k);
      if constexpr (kLine == Line::kInt4) {
        const FourBytes second(x + (i * x_stride) + k + 4);
        for (int j = 0; j < kVectors; ++j) {
          dots[i][j] = dot4(dots[i][j], low_half(weights[j]), first);
          dots[i][j] = dot4(dots[i][j], high_half(weights[j]), second);
        }
      } else {
        for (int j = 0; j < kVectors; ++j) dots[i][j] = dot4(dots[i][j], weights[j], first);
      }
    }
  }
}

#if defined(__ARM_FEATURE_MATMUL_INT8)
// The same for pairs of rows, by the instruction that multiplies 2 x 8 by 8 x 2 bytes: twice as many at a time.
template <Line kLine, int kRows, int kVectors>
inline void dot_block_by_pairs(const uint8_t* line, int64_t block, const int8_t* x, int64_t x_stride,
                               Dots<kRows, kVectors>& dots) {
  int32x4_t sums[kRows / 2][kVectors][2];  // (two outputs, two rows) each
  for (int i = 0; i < kRows; i += 2) {
    for (int j = 0; j < kVectors; ++j) {
      sums[i / 2][j][0] = vzip1q_s32(dots[i][j], dots[i + 1][j]);
      sums[i / 2][j][1] = vzip2q_s32(dots[i][j], dots[i + 1][j]);
    }
  }
  for (int64_t k = 0; k < block; k += 8) {
    for (int j = 0; j < kVectors; ++j) {
      Ints first, second;
      if constexpr (kLine == Line::kInt4) {
        const Ints both = load<Ints>(line + (k / 8 * kPanel * 4) + (j * kWidth * 4));
        first = low_half(both), second = high_half(both);
      } else {
        first = load<Ints>(line + (k / 4 * kPanel * 4) + (j * kWidth * 4));
        second = load<Ints>(line + ((k / 4 + 1) * kPanel * 4) + (j * kWidth * 4));
      }
      const uint8x16_t low = vreinterpretq_u8_s32(vzip1q_s32(first, second));  // two outputs, eight inputs
      const uint8x16_t high = vreinterpretq_u8_s32(vzip2q_s32(first, second));
      for (int i = 0; i < kRows; i += 2) {
        const int8x16_t pair = vcombine_s8(vld1_s8(x + (i * x_stride) + k), vld1_s8(x + ((i + 1) * x_stride) + k));
        sums[i / 2][j][0] = vusmmlaq_s32(sums[i / 2][j][0], low, pair);
        sums[i / 2][j][1] = vusmmlaq_s32(sums[i / 2][j][1], high, pair);
      }
    }
  }
  for (int i = 0; i < kRows; i += 2) {
    for (int j = 0; j < kVectors; ++j) {
      dots[i][j] = vuzp1q_s32(sums[i / 2][j][0], sums[i / 2][j][1]);
      dots[i + 1][j] = vuzp2q_s32(sums[i / 2][j][0], sums[i / 2][j][1]);
    }
  }
}
#endif

// sums (rows, 64) += rows times the chunk, for kRows rows from `row` and kVectors vectors of outputs from `column`.
template <Line kLine, int kRows, int kVectors>
inline void dot_tile(const PanelChunk& chunk, const Rows& x, int64_t row, int64_t column, float* sums) {
  const int64_t line_bytes = chunk.block * kPanel / (kLine == Line::kInt4 ? 2 : 1);
  Floats total[kRows][kVectors];
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kVectors; ++j) total[i][j] = load(sums + (i * kPanel) + column + (j * kWidth));
  }
  for (int64_t b = 0; b < chunk.blocks; ++b) {
    const uint8_t* lines = chunk.lines + (b * line_bytes) + (column * 4);
    const int8_t* bytes = x.bytes + (row * x.in) + (b * chunk.block);
    Dots<kRows, kVectors> dots;
    for (int i = 0; i < kRows; ++i) {
      for (int j = 0; j < kVectors; ++j) dots[i][j] = splat(x.starts[((row + i) * x.blocks) + b]);
    }
#if defined(__ARM_FEATURE_MATMUL_INT8)
    if constexpr (kRows % 2 == 0) {
      dot_block_by_pairs<kLine, kRows, kVectors>(lines, chunk.block, bytes, x.in, dots);
    } else {
      dot_block<kLine, kRows, kVectors>(lines, chunk.block, bytes, x.in, dots);
    }
#else
    dot_block<kLine, kRows, kVectors>(lines, chunk.block, bytes, x.in, dots);
#endif
    for (int j = 0; j < kVectors; ++j) {
      const int64_t index = (b * kPanel) + column + (j * kWidth);
      const Floats scale = load_scales(chunk.scales, chunk.half_scales, index);
      for (int i = 0; i < kRows; ++i) {
        total[i][j] += to_floats(dots[i][j]) * (scale * x.scales[((row + i) * x.blocks) + b]);
      }
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kVectors; ++j) store(sums + (i * kPanel) + column + (j * kWidth), total[i][j]);
  }
}

template <Line kLine, int kRows>
inline void dot_rows(const PanelChunk& chunk, const Rows& x, int64_t row, float* sums) {
  for (int64_t column = 0; column < kPanel; column += kDotVectors * kWidth) {
    dot_tile<kLine, kRows, kDotVectors>(chunk, x, row, column, sums + (row * kPanel));
  }
}

template <Line kLine, int kRows>
inline void dot_last_rows(const PanelChunk& chunk, const Rows& x, int64_t row, int64_t tokens, float* sums) {
  if constexpr (kRows > 0) {
    if (tokens - row == kRows) return dot_rows<kLine, kRows>(chunk, x, row, sums);
    dot_last_rows<kLine, kRows - 1>(chunk, x, row, tokens, sums);
  }
}

template <Line kLine>
[[gnu::noinline]] inline void dot_chunk(const PanelChunk& chunk, const Rows& x, int64_t tokens, float* sums) {
  int64_t row = 0;
  for (; row + kDotRows <= tokens; row += kDotRows) dot_rows<kLine, kDotRows>(chunk, x, row, sums);
  dot_last_rows<kLine, kDotRows - 1>(chunk, x, row, tokens, sums);
}

// int4 lines to one byte per weight, still unsigned.
inline void split_int4(const uint8_t* lines, int64_t inputs, uint8_t* bytes) {
  for (int64_t k = 0; k < inputs; k += 8, lines += kPanel * 4, bytes += kPanel * 8) {
    for (int64_t at = 0; at < kPanel * 4; at += 4 * kWidth) {
      const Ints line = load<Ints>(lines + at);
      store(bytes + at, low_half(line));
      store(bytes + (kPanel * 4) + at, high_half(line));
    }
  }
}

inline void dot_panel(const PackedMatrix& w, const uint8_t* values, const uint8_t* scales, const Rows& x,
                      int64_t tokens, float* sums) {
  Frame frame;
  const bool int4 = w.format == Format::kInt4, split = int4 && tokens > kFewRows;
  const int64_t step = tokens > kFewRows ? std::max(w.block, kChunk / w.block * w.block) : w.in;
  auto* bytes = split ? frame.take<uint8_t>(step * kPanel) : nullptr;
  for (int64_t k = 0; k < w.in; k += step) {
    const int64_t inputs = std::min(step, w.in - k);
    const uint8_t* lines = values + (k * kPanel / (int4 ? 2 : 1));
    const uint8_t* scale = scales + (k / w.block * kPanel * (w.half_scales ? 2 : 4));
    if (split) split_int4(lines, inputs, bytes);
    const PanelChunk chunk{split ? bytes : lines, scale, w.half_scales, w.block, inputs / w.block};
    Rows part = x;
    part.bytes += k, part.scales += k / w.block, part.starts += k / w.block;
    if (split) {
      dot_chunk<Line::kBytes>(chunk, part, tokens, sums);
    } else if (int4) {
      dot_chunk<Line::kInt4>(chunk, part, tokens, sums);
    } else {
      dot_chunk<Line::kInt8>(chunk, part, tokens, sums);
    }
  }
}

// Expands `inputs` inputs of a panel from input k on to (inputs, 64) floats.
inline void expand_integers(const PackedMatrix& w, const uint8_t* values, const uint8_t* scales, int64_t k,
                            int64_t inputs, float* floats) {
  const bool int4 = w.format == Format::kInt4;
  const int64_t group = int4 ? 8 : 4;
  const int32_t offset = int4 ? 8 : 128;
  for (int64_t i = 0; i < inputs; i += group) {
    const uint8_t* line = values + ((k + i) / group * kPanel * 4);
    for (int64_t column = 0; column < kPanel; column += kWidth) {
      const Uints raw = load<Uints>(line + (column * 4));
      const Floats scale = load_scales(scales, w.half_scales, ((k + i) / w.block * kPanel) + column);
      for (int64_t part = 0; part < group; ++part) {
        const Uints shifted = raw >> static_cast<uint32_t>(int4 ? (part % 4 * 8) + (part / 4 * 4) : part * 8);
        const Ints value = Ints(shifted & (int4 ? 15u : 255u)) - offset;
        store(floats + ((i + part) * kPanel) + column, to_floats(value) * scale);
      }
    }
  }
}

inline void expand_bfloat16(const uint8_t* values, int64_t k, int64_t inputs, float* floats) {
  for (int64_t i = 0; i < inputs; i += 2) {
    for (int64_t column = 0; column < kPanel; column += kWidth) {
      const Uints pair = load<Uints>(values + ((((k + i) * kPanel) + (column * 2)) * 2));
      store(floats + (i * kPanel) + column, pair << 16);
      store(floats + ((i + 1) * kPanel) + column, pair & 0xffff0000u);
    }
  }
}

inline void float_panel(const PackedMatrix& w, const uint8_t* values, const uint8_t* scales, const Rows& x,
                        int64_t tokens, float* sums) {
  Frame frame;
  constexpr int64_t step = kChunk / 2;
  auto* expanded = frame.take<float>(step * kPanel);
  for (int64_t k = 0; k < w.in; k += step) {
    const int64_t inputs = std::min(step, w.in - k);
    const float* b = expanded;
    if (w.quantized()) {
      expand_integers(w, values, scales, k, inputs, expanded);
    } else if (w.format == Format::kBfloat16) {
      expand_bfloat16(values, k, inputs, expanded);
    } else {
      b = reinterpret_cast<const float*>(values) + (k * kPanel);
    }
    multiply({tokens, kPanel, inputs, x.floats + k, x.in, b, kPanel, sums, kPanel, true});
  }
}

#if defined(__AVX512BF16__)
template <int kRows>
inline void bfloat16_rows(const uint8_t* values, const Rows& x, int64_t row, float* sums) {
  const uint16_t* from = x.bfloat16s + (row * x.in);
  Floats total[kRows][4] = {};
  for (int64_t k = 0; k < x.in; k += 2, values += kPanel * 4) {
    __m512bh weights[4];
    for (int j = 0; j < 4; ++j) weights[j] = load<__m512bh>(values + (j * 64));
    for (int i = 0; i < kRows; ++i) {
      const auto pair = __m512bh(splat(load<int32_t>(from + (i * x.in) + k)));
      for (int j = 0; j < 4; ++j) total[i][j] = Floats(_mm512_dpbf16_ps(__m512(total[i][j]), weights[j], pair));
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < 4; ++j) store(sums + ((row + i) * kPanel) + (j * kWidth), total[i][j]);
  }
}

inline void bfloat16_panel(const uint8_t* values, const Rows& x, int64_t tokens, float* sums) {
  int64_t row = 0;
  for (; row + 6 <= tokens; row += 6) bfloat16_rows<6>(values, x, row, sums);
  for (; row + 2 <= tokens; row += 2) bfloat16_rows<2>(values, x, row, sums);
  if (row < tokens) bfloat16_rows<1>(values, x, row, sums);
}
#endif

#if defined(EDGE_AMX)
// Expands `inputs` inputs of a panel to (inputs / 2, 64, 2) bfloat16.
inline void expand_to_bfloat16(const PackedMatrix& w, const uint8_t* values, const uint8_t* scales, int64_t k,
                               int64_t inputs, float* floats, uint16_t* out) {
  expand_integers(w, values, scales, k, inputs, floats);
  for (int64_t i = 0; i < inputs; i += 2, floats += 2 * kPanel, out += 2 * kPanel) {
    for (int64_t column = 0; column < kPanel; column += kWidth) {
      const Uints low = __builtin_convertvector(round_to_bfloat16(load(floats + column)), Uints);
      const Uints high = __builtin_convertvector(round_to_bfloat16(load(floats + kPanel + column)), Uints);
      store(out + (2 * column), low | (high << 16));
    }
  }
}

// sums has room for whole tiles.
inline void amx_panel(const PackedMatrix& w, const uint8_t* values, const uint8_t* scales, const Rows& x,
                      int64_t tokens, float* sums) {
  Frame frame;
  [[maybe_unused]] const amx::Configured configured;
  const bool expand = w.quantized();
  auto* floats = expand ? frame.take<float>(kChunk * kPanel) : nullptr;
  auto* expanded = expand ? frame.take<uint16_t>(kChunk * kPanel) : nullptr;
  for (int64_t k = 0; k < w.in; k += kChunk) {
    const int64_t inputs = std::min(kChunk, w.in - k);
    const uint16_t* right = reinterpret_cast<const uint16_t*>(values) + (k * kPanel);
    if (expand) {
      expand_to_bfloat16(w, values, scales, k, inputs, floats, expanded);
      right = expanded;
    }
    for (int64_t row = 0; row < tokens; row += kTileRows) {
      for (int64_t column = 0; column < kPanel; column += 2 * amx::kTile) {
        amx::multiply_32x32(x.bfloat16s + (row * x.in) + k, x.in, right, inputs, column, sums + (row * kPanel));
      }
    }
  }
}
#endif

}  // namespace detail

// y (tokens, out; rows y_stride floats apart) = x W for the outputs of one panel.
inline void panel_product(const PackedMatrix& w, int64_t panel, const Rows& x, int64_t tokens, float* y,
                          int64_t y_stride) {
  const uint8_t* values = w.values + (static_cast<size_t>(panel) * w.panel_bytes());
  const uint8_t* scales = w.quantized() ? w.scales + (static_cast<size_t>(panel) * w.panel_scale_bytes()) : nullptr;
  const int64_t column = panel * kPanel, columns = std::min(kPanel, w.out - column);
  for (int64_t token = 0; token < tokens; token += detail::kRowsAtOnce) {
    Frame frame;
    const int64_t count = std::min(detail::kRowsAtOnce, tokens - token);
    auto* sums = frame.take<float>((count + kTileRows) * kPanel);
    std::fill_n(sums, count * kPanel, 0.0f);
    const Rows part = x.from(token);
    if (x.rounding == Rounding::kInt8) {
      detail::dot_panel(w, values, scales, part, count, sums);
#if defined(EDGE_AMX)
    } else if (x.rounding == Rounding::kTiles) {
      detail::amx_panel(w, values, scales, part, count, sums);
#endif
#if defined(__AVX512BF16__)
    } else if (x.rounding == Rounding::kBfloat16) {
      detail::bfloat16_panel(values, part, count, sums);
#endif
    } else {
      detail::float_panel(w, values, scales, part, count, sums);
    }
    for (int64_t i = 0; i < count; ++i) {
      std::copy_n(sums + (i * kPanel), columns, y + ((token + i) * y_stride) + column);
    }
  }
}

// Panels that one task takes: enough bytes to be worth a task. Depends on the matrix only.
inline int64_t panels_per_task(const PackedMatrix& w) {
  constexpr size_t worthwhile = size_t{1} << 16;
  return static_cast<int64_t>(std::max<size_t>(1, worthwhile / w.panel_bytes()));
}

}  // namespace edge::EDGE_ISA
