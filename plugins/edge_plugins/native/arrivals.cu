#include "arrivals.h"

#include "device.h"

namespace edge::cuda {

#if defined(__CUDACC__)

std::shared_ptr<uint32_t> make_arrivals() {
  void* counters = nullptr;
  if (cudaMalloc(&counters, kArrivals * sizeof(uint32_t)) != cudaSuccess) {
    cudaGetLastError();  // it is no later call's
    return nullptr;
  }
  std::shared_ptr<uint32_t> owner(static_cast<uint32_t*>(counters), [](uint32_t* memory) { cudaFree(memory); });
  require(cudaMemset(counters, 0, kArrivals * sizeof(uint32_t)), "counters");
  require(cudaDeviceSynchronize(), "counters");  // streams that do not wait for the one that clears them
  return owner;
}

#else

std::shared_ptr<uint32_t> make_arrivals() {
  return std::shared_ptr<uint32_t>(new uint32_t[kArrivals](), [](const uint32_t* memory) { delete[] memory; });
}

#endif

}  // namespace edge::cuda
