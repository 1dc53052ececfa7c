// Vectors as wide as the instruction set this file is compiled for, and the functions that the operators need on them.
//
// The compiler's vector extensions do the arithmetic; what they cannot express (dot products of bytes, float16) is
// spelled out per instruction set. EDGE_ISA names the set, and the namespace, of the including file.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "half.h"

namespace edge::EDGE_ISA {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

using Floats = float __attribute__((vector_size(4 * kWidth)));
using Ints = int32_t __attribute__((vector_size(4 * kWidth)));
using Uints = uint32_t __attribute__((vector_size(4 * kWidth)));
using Halves = uint16_t __attribute__((vector_size(2 * kWidth)));
using Bytes = int8_t __attribute__((vector_size(kWidth)));

inline int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

template <class V = Floats>
inline V load(const void* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <class V>
inline void store(void* to, V v) {
  std::memcpy(to, &v, sizeof v);
}

// Keeps a value that is used several times in its register: gcc would rather load it again each time.
template <class V>
inline void keep(V& v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#else
  asm("" : "+w"(v));
#endif
}

inline Floats splat(float x) { return x - Floats{}; }
inline Ints splat(int32_t x) { return x - Ints{}; }

inline Floats to_floats(Ints v) { return __builtin_convertvector(v, Floats); }

// A NaN in x stays.
inline Floats at_most(Floats x, float limit) { return x > limit ? splat(limit) : x; }
inline Floats at_least(Floats x, float limit) { return x < limit ? splat(limit) : x; }
inline Floats larger(Floats x, Floats y) { return x < y ? y : x; }
inline Ints larger(Ints x, Ints y) { return x < y ? y : x; }
inline Floats magnitude(Floats x) { return Floats(Uints(x) & 0x7fffffffu); }

namespace detail {

// Lane l is lane lanes[l] of a and b behind each other; the lanes are constants to the compiler.
template <class V>
inline V shuffle(V a, V b, Ints lanes) {
#if defined(__clang__)  // which makes one instruction of this
  V chosen;
  for (int l = 0; l < kWidth; ++l) chosen[l] = lanes[l] < kWidth ? a[lanes[l]] : b[lanes[l] - kWidth];
  return chosen;
#else
  return __builtin_shuffle(a, b, lanes);
#endif
}

// Lane l is a[l ^ flip] where bit `distance` of l is clear, else b[l ^ flip].
template <int distance, int flip>
inline Floats interleave(Floats a, Floats b) {
  Ints lanes;
  for (int l = 0; l < kWidth; ++l) lanes[l] = (l & distance ? kWidth : 0) + (l ^ flip);
  return shuffle(a, b, lanes);
}

template <int distance>
inline Floats sum_rows(Floats* rows) {
  for (int i = 0; i < distance; ++i) {
    rows[i] = interleave<distance, 0>(rows[i], rows[i + distance]) +
              interleave<distance, distance>(rows[i], rows[i + distance]);
  }
  if constexpr (distance > 1) return sum_rows<distance / 2>(rows);
  return rows[0];
}

}  // namespace detail

// Lane l is the sum of rows[l]; the rows are overwritten.
inline Floats sum_rows(Floats (&rows)[kWidth]) { return detail::sum_rows<kWidth / 2>(rows); }

namespace detail {

template <int distance, class V, class Combine>
inline V fold(V v, const Combine& combine) {
  if constexpr (distance > 0) {
    Ints lanes;
    for (int l = 0; l < kWidth; ++l) lanes[l] = l ^ distance;
    return fold<distance / 2>(combine(v, shuffle(v, v, lanes)), combine);
  }
  return v;
}

}  // namespace detail

inline float sum(Floats v) {
  return detail::fold<kWidth / 2>(v, [](Floats a, Floats b) { return a + b; })[0];
}
inline int32_t sum(Ints v) {
  return detail::fold<kWidth / 2>(v, [](Ints a, Ints b) { return a + b; })[0];
}
inline float largest(Floats v) {
  return detail::fold<kWidth / 2>(v, [](Floats a, Floats b) { return larger(a, b); })[0];
}
inline int32_t largest(Ints v) {
  return detail::fold<kWidth / 2>(v, [](Ints a, Ints b) { return larger(a, b); })[0];
}

// e^x to 2 units in the last place; 0 below -87.3, the largest power below infinity above 88.3, NaN for NaN.
inline Floats exp(Floats x) {
  const Floats kept = at_least(at_most(x, 88.3762626647949f), -87.3365447504f);
  const Floats scaled = kept * 1.44269504088896341f;
  const Floats shifted = scaled + 12582912.0f;  // 1.5 * 2^23: the integer now stands in the low bits
  const Floats whole = shifted - 12582912.0f;
  Floats r = kept - whole * 0.693359375f;
  r = r + whole * 2.12194440e-4f;
  Floats p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Floats power = Floats((Uints(shifted) << 23) + (127u << 23));
  return x < -87.3365447504f ? Floats{} : p * power;
}

inline Floats silu(Floats x) { return x / (1.0f + exp(-x)); }

inline Floats widen_bfloat16(Halves v) { return Floats(__builtin_convertvector(v, Uints) << 16); }

inline Halves round_to_bfloat16(Floats v) {
  const Uints bits = Uints(v);
  const Uints rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Uints quiet_nan = (bits >> 16) | 0x40u;
  return __builtin_convertvector(v == v ? rounded : quiet_nan, Halves);
}

inline Floats load_float16(const void* from) {
#if defined(__AVX512F__)
  return _mm512_maskz_cvtph_ps(0xffff, load<__m256i>(from));  // unmasked, gcc 12 warns of its own header
#elif defined(__F16C__)
  return _mm256_cvtph_ps(load<__m128i>(from));
#elif defined(__aarch64__)
  return vcvt_f32_f16(load<float16x4_t>(from));
#else
  Floats v;
  for (int i = 0; i < kWidth; ++i) v[i] = float16_to_float(static_cast<const uint16_t*>(from)[i]);
  return v;
#endif
}

inline void store_float16(void* to, Floats v) {
#if defined(__AVX512F__)
  store(to, _mm512_maskz_cvtps_ph(0xffff, v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  store(to, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__aarch64__)
  store(to, vcvt_f16_f32(v));
#else
  for (int i = 0; i < kWidth; ++i) static_cast<uint16_t*>(to)[i] = float_to_float16(v[i]);
#endif
}

inline Floats load_int8(const void* from) {
#if defined(__AVX512F__)
  return to_floats(Ints(_mm512_maskz_cvtepi8_epi32(0xffff, load<__m128i>(from))));
#elif defined(__AVX2__)
  return to_floats(Ints(_mm256_cvtepi8_epi32(_mm_loadu_si64(from))));
#else
  return to_floats(__builtin_convertvector(load<Bytes>(from), Ints));
#endif
}

// Dot products of four bytes per lane. On Arm without mixed-sign products the weights must be signed as well.
#if defined(__aarch64__) && !defined(__ARM_FEATURE_MATMUL_INT8)
constexpr bool kSignedWeights = true;
#else
constexpr bool kSignedWeights = false;
#endif

// Four activations, int8, to be multiplied with four weights in every lane.
struct FourBytes {
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
  Ints bytes;
  explicit FourBytes(const int8_t* x) : bytes(splat(load<int32_t>(x))) {}
#elif defined(__x86_64__)
  Ints even, odd;  // as pairs of int16, for pmaddwd
  explicit FourBytes(const int8_t* x)
      : even(splat((x[0] & 0xffff) | int32_t(uint32_t(x[2]) << 16))),
        odd(splat((x[1] & 0xffff) | int32_t(uint32_t(x[3]) << 16))) {}
#else
  int8x16_t bytes;
  explicit FourBytes(const int8_t* x) : bytes(vreinterpretq_s8_s32(vdupq_n_s32(load<int32_t>(x)))) {}
#endif
};

#if defined(__x86_64__) && !defined(__AVX512VNNI__) && !defined(__AVXVNNI__)
inline Ints multiply_add_pairs(Ints a, Ints b) {
#if defined(__AVX2__)
  return Ints(_mm256_madd_epi16(__m256i(a), __m256i(b)));
#else
  return Ints(_mm_madd_epi16(__m128i(a), __m128i(b)));
#endif
}
#endif

// sums + four weights (bytes of each lane, unsigned unless kSignedWeights) times x.
inline Ints dot4(Ints sums, Ints weights, FourBytes x) {
#if defined(__AVX512VNNI__)
  return Ints(_mm512_dpbusd_epi32(__m512i(sums), __m512i(weights), __m512i(x.bytes)));
#elif defined(__AVXVNNI__)
  return Ints(_mm256_dpbusd_avx_epi32(__m256i(sums), __m256i(weights), __m256i(x.bytes)));
#elif defined(__x86_64__)
  const Ints even = weights & 0x00ff00ff;
  const Ints odd = Ints((Uints(weights) >> 8) & 0x00ff00ffu);
  return sums + multiply_add_pairs(even, x.even) + multiply_add_pairs(odd, x.odd);
#elif defined(__ARM_FEATURE_MATMUL_INT8)
  return vusdotq_s32(sums, vreinterpretq_u8_s32(weights), x.bytes);
#elif defined(__ARM_FEATURE_DOTPROD)
  return vdotq_s32(sums, vreinterpretq_s8_s32(weights), x.bytes);
#else
  const int8x16_t w = vreinterpretq_s8_s32(weights);
  const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(x.bytes)));
  const int32x4_t high = vpaddlq_s16(vmull_s8(vget_high_s8(w), vget_high_s8(x.bytes)));
  return sums + vpaddq_s32(low, high);
#endif
}

}  // namespace edge::EDGE_ISA
