// Keys or values of consecutive positions in shared memory.
#pragma once

#include "problem.cuh"

namespace edge::cuda::attention {

// kKeys rows of room for kHeadDim elements C, of which the first head_dim are used and the rest are 0.
template <class C, int kHeadDim, int kKeys>
struct CacheTile {
  static constexpr int kChunks = kHeadDim * static_cast<int>(sizeof(C)) / 16;  // of 16 bytes
  // An odd number of chunks apart, the same chunk of eight neighbouring rows lies in eight different groups of banks.
  static constexpr int kRowBytes = (kChunks | 1) * 16;
  static constexpr int kBytes = kKeys * kRowBytes;

  unsigned char* memory;

  __device__ unsigned char* at(int key, int d) const {
    return memory + key * kRowBytes + d * static_cast<int>(sizeof(C));
  }

  // Starts to copy positions begin to begin + kKeys - 1; those from `end` on, where anything may stand, become 0.
  // rows: (capacity, head_dim). All threads take part; wait_async and a barrier end it.
  __device__ void copy_from(const C* rows, int head_dim, int begin, int end) const {
    const int row_bytes = head_dim * static_cast<int>(sizeof(C));
    if (row_bytes % 16 != 0) return copy_elements_from(rows, head_dim, begin, end);
    const auto* from = reinterpret_cast<const unsigned char*>(rows);
    EDGE_ROLL
    for (int i = static_cast<int>(threadIdx.x); i < kKeys * kChunks; i += kThreads) {
      const int key = i / kChunks, byte = i % kChunks * 16;
      const bool used = begin + key < end && byte < row_bytes;
      copy_async(memory + key * kRowBytes + byte, used ? from + size_t(begin + key) * row_bytes + byte : from, used);
    }
  }

 private:
  // For head sizes whose rows do not begin at multiples of 16 bytes.
  __device__ void copy_elements_from(const C* rows, int head_dim, int begin, int end) const {
    for (int i = static_cast<int>(threadIdx.x); i < kKeys * kHeadDim; i += kThreads) {
      const int key = i / kHeadDim, d = i % kHeadDim;
      const bool used = begin + key < end && d < head_dim;
      *reinterpret_cast<C*>(at(key, d)) = used ? rows[size_t(begin + key) * head_dim + d] : C{};
    }
  }
};

}  // namespace edge::cuda::attention
