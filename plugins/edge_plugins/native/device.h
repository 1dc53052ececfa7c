// What the operators' cuda.cu files use of CUDA: nvcc's own for GPUs, or a model of it that runs on the host.
//
// With EDGE_EMULATE_CUDA any C++17 compiler takes the same files (emulated_device.h). Kernels therefore keep to what
// stands here: shared memory is EDGE_SHARED alone, a block is one-dimensional and made of whole warps, every thread of
// a block reaches every barrier, and every lane of a warp every exchange.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "half.h"
#include "stream.h"
#include "types.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
// The block's dynamic shared memory, at a multiple of 128 bytes.
#define EDGE_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
// Before a loop over registers: an array is in registers only where every index is known.
#define EDGE_UNROLL _Pragma("unroll")
// Before a loop: its steps are not written out, for want of registers.
#define EDGE_ROLL _Pragma("unroll 1")
#elif defined(EDGE_EMULATE_CUDA)
#include "emulated_device.h"
#else
#error "Compile this with nvcc, or with EDGE_EMULATE_CUDA for the host."
#endif

namespace edge {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// Numbers of two bytes as they lie in memory. Kernels compute in float.
struct float16 {
  uint16_t bits;
};
struct bfloat16 {
  uint16_t bits;
};

// ---- Conversions ----

__host__ __device__ inline float to_float(float x) { return x; }

__host__ __device__ inline float to_float(float16 x) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(x.bits));
#else
  return float16_to_float(x.bits);
#endif
}

__host__ __device__ inline float to_float(bfloat16 x) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(uint32_t{x.bits} << 16);
#else
  return bfloat16_to_float(x.bits);
#endif
}

// To the nearest, ties to even.
template <class T>
__host__ __device__ inline T from_float(float x);

template <>
__host__ __device__ inline float from_float<float>(float x) {
  return x;
}

template <>
__host__ __device__ inline float16 from_float<float16>(float x) {
#if defined(__CUDA_ARCH__)
  return {__half_as_ushort(__float2half_rn(x))};
#else
  return {float_to_float16(x)};
#endif
}

template <>
__host__ __device__ inline bfloat16 from_float<bfloat16>(float x) {
#if defined(__CUDA_ARCH__)
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
#else
  return {float_to_bfloat16(x)};
#endif
}

// Two neighbours as one register of a matrix operand, the first in the low half. T is float16 or bfloat16.
// float16 takes two instructions, for want of registers in attention (docs/gpu.md).
template <class T>
__device__ inline uint32_t pack(float low, float high) {
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<T, bfloat16>) {
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
  }
#endif
  return uint32_t{from_float<T>(low).bits} | uint32_t{from_float<T>(high).bits} << 16;
}

template <class T>
__device__ inline float2 unpack(uint32_t pair) {
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<T, bfloat16>) {
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
  }
#endif
  return make_float2(to_float(T{static_cast<uint16_t>(pair)}), to_float(T{static_cast<uint16_t>(pair >> 16)}));
}

// The differences of two pairs, rounded to T.
template <class T>
__device__ inline uint32_t subtract(uint32_t minuend, uint32_t subtrahend) {
#if defined(__CUDA_ARCH__)
  using Pair = std::conditional_t<std::is_same_v<T, float16>, __half2, __nv_bfloat162>;
  union {
    uint32_t bits;
    Pair pair;
  } left{minuend}, right{subtrahend};
  left.pair = __hsub2(left.pair, right.pair);
  return left.bits;
#else
  const float2 left = unpack<T>(minuend), right = unpack<T>(subtrahend);
  return pack<T>(left.x - right.x, left.y - right.y);
#endif
}

// ---- Launching ----

#if defined(__CUDACC__)

inline void require(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

template <class T>
struct Exactly {
  using type = T;
};

// Starts `kernel` on grid x threads with so many bytes of shared memory. Throws std::runtime_error when refused.
template <class... P>
void launch(void (*kernel)(P...), dim3 grid, unsigned threads, size_t shared_bytes, Stream stream,
            typename Exactly<P>::type... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (shared_bytes > (size_t{48} << 10)) {
    require(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes)),
            "shared memory");
  }
  kernel<<<grid, threads, shared_bytes, stream>>>(arguments...);
  require(cudaGetLastError(), "kernel launch");
}

// ---- Arithmetic ----

// 2 to the power of x: one instruction, to 22 bits; results below 2^-126 are 0.
__device__ inline float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// (bits & mask) ^ flips in one instruction.
__device__ inline uint32_t mask_and_flip(uint32_t bits, uint32_t mask, uint32_t flips) {
  uint32_t y;
  asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(y) : "r"(bits), "r"(mask), "r"(flips));
  return y;
}

// ---- Memory that blocks share ----

// With an atomic operation behind it releases what the thread wrote, and before it its block behind a barrier; with one
// before it acquires. __threadfence() orders more, and waits longer.
__device__ inline void fence_device() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

// ---- Tensor cores and asynchronous copies ----

// d (16, 8) += a (16, 16) b (16, 8), in the register layout of PTX's mma.m16n8k16. T is float16 or bfloat16.
template <class T>
__device__ inline void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  if constexpr (std::is_same_v<T, float16>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#endif
}

// PTX's ldmatrix.x4: four 8x8 matrices of two-byte numbers. Lane l gives the address (16 bytes, in shared memory) of
// row l % 8 of matrix l / 8, and gets of each matrix elements 2 (l % 4) and the next of row l / 4.
__device__ inline void load_matrices(uint32_t (&r)[4], const void* row) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// The same with each matrix transposed.
__device__ inline void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// Copies 16 bytes to shared memory in the background, or zeros where not `valid`; both addresses divide by 16.
__device__ inline void copy_async(void* shared, const void* global, bool valid) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}

// The same with one float; both addresses divide by 4.
__device__ inline void copy_async_float(float* shared, const float* global, bool valid) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(address), "l"(global), "r"(valid ? 4 : 0)
               : "memory");
}

// Ends a group of copies.
__device__ inline void commit_async() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until all of this thread's groups but the latest `kPending` are there; a barrier shows them to other threads.
template <int kPending>
__device__ inline void wait_async() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

#endif

// ---- All lanes of a warp ----

// The sum over them, the same in each.
template <class T>
__device__ inline T warp_sum(T value) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value += __shfl_xor_sync(kAllLanes, value, mask);
  return value;
}

}  // namespace edge
