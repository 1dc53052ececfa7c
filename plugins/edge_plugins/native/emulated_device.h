// A model of a CUDA device on the host, for tests: every thread of a block is a fiber of its own.
//
// Blocks run one after another, and a block's threads one at a time, each until it waits for others. The order is a
// schedule: forward, backward, or shuffled anew at every turn. Code with a missing barrier gives another result under
// some of them. Shared memory begins as NaN and ends at a page that may not be touched; asynchronous copies arrive as
// late as they may, backward at once; a barrier that some thread never reaches is an error. Names are CUDA's own (CUDA
// C++ Programming Guide, C++ language extensions); mma and ldmatrix follow the layouts of the PTX ISA.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define threadIdx (edge::emulated::here().thread)
#define blockIdx (edge::emulated::here().block)
#define blockDim (edge::emulated::here().threads)
#define gridDim (edge::emulated::here().blocks)
#define EDGE_UNROLL
#define EDGE_ROLL
#define EDGE_SHARED(name) unsigned char* const name = edge::emulated::shared_memory()
#define EDGE_UNROLL

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

struct float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

namespace edge {

struct float16;
struct bfloat16;

namespace emulated {

struct Place {
  dim3 thread, block, threads, blocks;
};

const Place& here();
unsigned char* shared_memory();

// All threads of the block, or all lanes of the warp, wait for each other.
void block_barrier();
void warp_barrier();

// Every lane of the warp shows `bytes` bytes; returns those of all lanes, one after another, until the next exchange.
const unsigned char* exchange(const void* mine, size_t bytes);

// Runs a block-by-block launch; throws std::logic_error where threads wait for some that never come.
void run(dim3 blocks, unsigned threads, size_t shared_bytes, const std::function<void()>& kernel);

// 0: forward, 1: backward, other: shuffled from this seed. Holds for the calling thread's launches from now on.
void set_schedule(uint32_t schedule);

template <class T>
T from_lane(T value, unsigned lane) {
  T all[32];
  std::memcpy(all, exchange(&value, sizeof value), sizeof all);
  return all[lane % 32];
}

inline unsigned lane() { return here().thread.x % 32; }

void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], float (*convert)(uint16_t));
void load_matrices(uint32_t (&r)[4], const void* row, bool transposed);
void copy_async(void* shared, const void* global, size_t bytes, bool valid);
void commit_async();
void wait_async(int pending);

}  // namespace emulated

template <class T>
struct Exactly {
  using type = T;
};

template <class... P>
void launch(void (*kernel)(P...), dim3 grid, unsigned threads, size_t shared_bytes, Stream,
            typename Exactly<P>::type... arguments) {
  emulated::run(grid, threads, shared_bytes, [&] { kernel(arguments...); });
}

inline void fence_device() {}
inline float fast_exp2(float x) { return std::exp2(x); }
inline uint32_t mask_and_flip(uint32_t bits, uint32_t mask, uint32_t flips) { return (bits & mask) ^ flips; }

template <class T>
inline void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulated::mma(d, a, b, std::is_same_v<T, float16> ? float16_to_float : bfloat16_to_float);
}
inline void load_matrices(uint32_t (&r)[4], const void* row) { emulated::load_matrices(r, row, false); }
inline void load_matrices_transposed(uint32_t (&r)[4], const void* row) { emulated::load_matrices(r, row, true); }
inline void copy_async(void* shared, const void* global, bool valid) {
  emulated::copy_async(shared, global, 16, valid);
}
inline void copy_async_float(float* shared, const float* global, bool valid) {
  emulated::copy_async(shared, global, 4, valid);
}
inline void commit_async() { emulated::commit_async(); }
template <int kPending>
inline void wait_async() {
  emulated::wait_async(kPending);
}

}  // namespace edge

// ---- CUDA's own functions ----

inline void __syncthreads() { edge::emulated::block_barrier(); }
inline void __syncwarp(unsigned = 0xffffffffu) { edge::emulated::warp_barrier(); }
template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  return edge::emulated::from_lane(value, static_cast<unsigned>(lane));
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return edge::emulated::from_lane(value, edge::emulated::lane() ^ static_cast<unsigned>(mask));
}
template <class T>
T __shfl_down_sync(unsigned, T value, unsigned by) {
  const unsigned lane = edge::emulated::lane();
  return edge::emulated::from_lane(value, lane + by < 32 ? lane + by : lane);
}
template <class T>
T __shfl_up_sync(unsigned, T value, unsigned by) {
  const unsigned lane = edge::emulated::lane();
  return edge::emulated::from_lane(value, lane >= by ? lane - by : lane);
}
inline unsigned __ballot_sync(unsigned, int predicate) {
  int all[32];
  std::memcpy(all, edge::emulated::exchange(&predicate, sizeof predicate), sizeof all);
  unsigned bits = 0;
  for (unsigned lane = 0; lane < 32; ++lane) bits |= (all[lane] != 0 ? 1u : 0u) << lane;
  return bits;
}
inline unsigned __reduce_max_sync(unsigned, unsigned value) {
  unsigned all[32];
  std::memcpy(all, edge::emulated::exchange(&value, sizeof value), sizeof all);
  return *std::max_element(all, all + 32);
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = uint64_t{y} << 32 | x;
  unsigned chosen = 0;
  for (unsigned i = 0; i < 4; ++i) {
    chosen |= static_cast<unsigned>(bytes >> (8 * (selector >> (4 * i) & 7)) & 0xff) << (8 * i);
  }
  return chosen;
}
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline unsigned atomicInc(unsigned* to, unsigned limit) {
  const unsigned before = *to;
  *to = before >= limit ? 0 : before + 1;
  return before;
}
template <class T>
T __ldg(const T* from) {
  return *from;
}
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline unsigned __float_as_uint(float x) { return edge::float_to_bits(x); }
inline float __uint_as_float(unsigned bits) { return edge::bits_to_float(bits); }
using std::max;
using std::min;
