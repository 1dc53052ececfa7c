// How blocks finish together what each has done a part of, without another launch: they count themselves in, and the
// last one goes on (CUDA C++ Programming Guide, "Memory Fence Functions").
#pragma once

#include "arrivals.h"
#include "device.h"

namespace edge::cuda {

// To be called by all threads of each of `blocks` blocks, behind a barrier. After another one, `is_last` (shared
// memory) is not 0 in the block that came last, and that block sees what the others wrote before they called this. The
// counter is 0 before and after.
__device__ inline void arrive(uint32_t* counter, uint32_t blocks, uint32_t* is_last) {
  if (threadIdx.x != 0) return;
  fence_device();
  *is_last = atomicInc(counter, blocks - 1) == blocks - 1 ? 1 : 0;
  fence_device();
}

}  // namespace edge::cuda
