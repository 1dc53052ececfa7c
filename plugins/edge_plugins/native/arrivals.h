// Counters with which the blocks of a kernel find out which of them is the last (arrivals.cuh).
#pragma once

#include <cstdint>
#include <memory>

namespace edge::cuda {

constexpr int64_t kArrivals = 4096;

// kArrivals counters on the device, all 0: for the calls of one stream, one after another, each of which leaves them at
// 0. Null where there is no device, as where engines are built: calls then need another launch.
std::shared_ptr<uint32_t> make_arrivals();

}  // namespace edge::cuda
