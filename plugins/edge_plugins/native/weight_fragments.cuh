// Weights as operands of tensor cores, straight from ONNX's layout.
//
// Weights are the left operand of mma_16x8x16, rows of activations the right one: a product's 16 rows are 16 outputs,
// its 8 columns 8 rows of activations. A lane's registers hold pairs of neighbouring inputs of one output. In memory
// neighbouring *outputs* stand together, so a lane reads the same outputs of two rows (inputs k and k + 1) and pairs
// them itself. Which output is which row of the operand is free to choose: a lane's outputs are neighbours, output
// 2 i in row lane / 4 of the i-th product, output 2 i + 1 in row lane / 4 + 8.
//
// Integers become exact float16 or bfloat16 by way of their bits: 0x6400 | n is 1024 + n as float16, 0x4300 | n is
// 128 + n as bfloat16 (Kim et al., "Who Says Elephants Can't Run", arXiv 2211.10017, section 4.2). What that adds to a
// number is subtracted from it, or, where each weight serves few rows, from the sums. Scales are applied to sums over a
// block, in float32.
#pragma once

#include "device.h"
#include "weight.h"

namespace edge::cuda {

struct Int4 {};  // names the format; two stand in a byte

template <class Stored>
constexpr int kBitsOf = std::is_same_v<Stored, Int4> ? 4 : 8 * static_cast<int>(sizeof(Stored));
template <class Stored>
constexpr bool kIsInteger = std::is_same_v<Stored, Int4> || std::is_same_v<Stored, int8_t>;

// The address of element (row, column) of a matrix that is `out` wide.
template <class Stored>
__device__ inline const unsigned char* element(const void* values, int64_t row, int out, int column) {
  return static_cast<const unsigned char*>(values) + ((row * out + column) * kBitsOf<Stored> / 8);
}

// 2, 4, 8 or 16 bytes, at a multiple of as many.
template <int kBytes>
__device__ inline void load_bytes(uint32_t (&words)[(kBytes + 3) / 4], const void* from) {
  if constexpr (kBytes == 16) {
    const uint4 all = *static_cast<const uint4*>(from);
    words[0] = all.x, words[1] = all.y, words[2] = all.z, words[3] = all.w;
  } else if constexpr (kBytes == 8) {
    const uint2 all = *static_cast<const uint2*>(from);
    words[0] = all.x, words[1] = all.y;
  } else if constexpr (kBytes == 4) {
    words[0] = *static_cast<const uint32_t*>(from);
  } else {
    static_assert(kBytes == 2);
    words[0] = *static_cast<const uint16_t*>(from);
  }
}

// A pair of what an int4 number is larger by when only its bits have been set: 64 + 8 as float16, with the number at
// bit 4; 128 + 8 as bfloat16. The less it is, the less a sum loses by it.
template <class T>
__host__ __device__ constexpr uint32_t int4_bias() {
  return std::is_same_v<T, float16> ? 0x54805480u : 0x43084308u;
}

// Four outputs of two rows, each larger by its bias: 16 bits of each row stand side by side in `both`, the even row's
// in the low half. Flipping a nibble's sign bit makes it n + 8; one constant does that and adds the exponent.
template <class T>
__device__ inline void pair_biased_int4(uint32_t both, uint32_t* pairs) {
  constexpr bool kHalf = std::is_same_v<T, float16>;
  EDGE_UNROLL
  for (int i = 0; i < 4; ++i) {
    const uint32_t bits = kHalf && i == 0 ? both << 4 : both >> (4 * (kHalf ? i - 1 : i));
    pairs[i] = mask_and_flip(bits, kHalf ? 0x00f000f0u : 0x000f000fu, int4_bias<T>());
  }
}

// Four outputs of two rows, a word each.
template <class T>
__device__ inline void pair_int8(uint32_t even, uint32_t odd, uint32_t* pairs) {
  even ^= 0x80808080u;  // n + 128
  odd ^= 0x80808080u;
  if constexpr (std::is_same_v<T, float16>) {
    constexpr uint32_t kExponent = 0x64646464u, kOffset = 0x64806480u;  // 1024 + 128
    const uint32_t first = __byte_perm(even, odd, 0x5140), last = __byte_perm(even, odd, 0x7362);
    pairs[0] = subtract<T>(__byte_perm(first, kExponent, 0x4140), kOffset);
    pairs[1] = subtract<T>(__byte_perm(first, kExponent, 0x4342), kOffset);
    pairs[2] = subtract<T>(__byte_perm(last, kExponent, 0x4140), kOffset);
    pairs[3] = subtract<T>(__byte_perm(last, kExponent, 0x4342), kOffset);
  } else {  // bfloat16's 8 bits do not hold 256 + n: by way of float32, 2^23 + n
    constexpr uint32_t kExponent = 0x4b000000u;
    constexpr float kOffset = 8388608.0f + 128.0f;
    EDGE_UNROLL
    for (uint32_t i = 0; i < 4; ++i) {
      pairs[i] = pack<T>(__uint_as_float(__byte_perm(even, kExponent, 0x7650u + i)) - kOffset,
                         __uint_as_float(__byte_perm(odd, kExponent, 0x7650u + i)) - kOffset);
    }
  }
}

template <class T, class Stored>
__device__ inline uint32_t convert_pair(uint32_t pair) {
  if constexpr (std::is_same_v<T, Stored>) return pair;
  const float2 values = unpack<Stored>(pair);
  return pack<T>(values.x, values.y);
}

// pairs[i]: output 4 `group` + i of two rows, whose words are given, as numbers of type T; int4 larger by its bias.
template <class T, class Stored, int kWords>
__device__ inline void pair_rows(const uint32_t (&even)[kWords], const uint32_t (&odd)[kWords], int group,
                                 uint32_t (&pairs)[4]) {
  if constexpr (std::is_same_v<Stored, Int4>) {
    const int word = group / 2;
    pair_biased_int4<T>(__byte_perm(even[word], odd[word], group % 2 == 0 ? 0x5410 : 0x7632), pairs);
  } else if constexpr (std::is_same_v<Stored, int8_t>) {
    pair_int8<T>(even[group], odd[group], pairs);
  } else {
    EDGE_UNROLL
    for (int i = 0; i < 2; ++i) {
      const uint32_t first = even[2 * group + i], second = odd[2 * group + i];
      pairs[2 * i] = convert_pair<T, Stored>(__byte_perm(first, second, 0x5410));
      pairs[2 * i + 1] = convert_pair<T, Stored>(__byte_perm(first, second, 0x7632));
    }
  }
}

// The left operands of two products, 16 inputs of four outputs, from the words of a lane's four rows: inputs 2 t,
// 2 t + 1, 2 t + 8 and 2 t + 9, t being lane % 4. Int4 is larger by its bias.
template <class T, class Stored, int kWords>
__device__ inline void biased_operands(const uint32_t (&rows)[4][kWords], int group, uint32_t (&left)[2][4]) {
  uint32_t near[4], far[4];
  pair_rows<T, Stored>(rows[0], rows[1], group, near);
  pair_rows<T, Stored>(rows[2], rows[3], group, far);
  EDGE_UNROLL
  for (int i = 0; i < 2; ++i) {
    left[i][0] = near[2 * i];
    left[i][1] = near[2 * i + 1];
    left[i][2] = far[2 * i];
    left[i][3] = far[2 * i + 1];
  }
}

// The same, as the numbers are.
template <class T, class Stored, int kWords>
__device__ inline void left_operands(const uint32_t (&rows)[4][kWords], int group, uint32_t (&left)[2][4]) {
  biased_operands<T, Stored>(rows, group, left);
  if constexpr (std::is_same_v<Stored, Int4>) {
    EDGE_UNROLL
    for (int i = 0; i < 8; ++i) left[i / 4][i % 4] = subtract<T>(left[i / 4][i % 4], int4_bias<T>());
  }
}

// Takes from sums, a product's registers, what the weights' bias brings there: it adds the inputs' sums times -bias.
template <class T>
__device__ inline void subtract_bias(float (&sums)[4], const uint32_t (&right)[2]) {
  constexpr uint32_t kMinus = int4_bias<T>() ^ 0x80008000u;
  mma_16x8x16<T>(sums, {kMinus, kMinus, kMinus, kMinus}, right);
}

// The j-th of the four inputs whose weights a lane holds of 16.
__device__ inline int operand_row(int lane, int j) { return lane % 4 * 2 + j % 2 + j / 2 * 8; }

// sum + scale * part, a product's registers: two outputs, two rows of activations.
__device__ inline void add_scaled(float (&sum)[4], const float (&part)[4], float first_scale, float second_scale) {
  sum[0] += first_scale * part[0];
  sum[1] += first_scale * part[1];
  sum[2] += second_scale * part[2];
  sum[3] += second_scale * part[3];
}

}  // namespace edge::cuda
