// The model of a CUDA device, held to what CUDA and PTX say; where it runs on a GPU, CUDA itself is held to the same.
#include "../edge_plugins/native/device.h"

#include <cstdio>
#include <numeric>

#include "check.h"

namespace edge::test {
namespace {

__global__ void sum_block(const float* x, float* y, bool with_barrier) {
  EDGE_SHARED(memory);
  auto* sums = reinterpret_cast<float*>(memory);
  float sum = x[blockIdx.x * blockDim.x + threadIdx.x];
  for (int mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(kAllLanes, sum, mask);
  if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = sum;
  if (with_barrier) __syncthreads();
  if (threadIdx.x == 0) {
    float all = 0;
    for (unsigned w = 0; w < blockDim.x / kWarp; ++w) all += sums[w];
    y[blockIdx.x] = all;
  }
}

__global__ void stuck() {
  if (threadIdx.x == 0) __syncthreads();
}

// One warp: d (16, 8) = a (16, 16) b (16, 8), a row by row, b either way round.
template <class T>
__global__ void product(const T* a, const T* b, float* d, bool b_transposed) {
  EDGE_SHARED(memory);
  auto* left = reinterpret_cast<T*>(memory);
  T* right = left + (16 * 16);
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 32; i += kWarp) copy_async(left + (i * 8), a + (i * 8), true);
  for (int i = lane; i < 32; i += kWarp) copy_async(right + (i * 8), b + (i * 8), i < 16);
  commit_async();
  wait_async<0>();
  __syncthreads();
  uint32_t ar[4], br[4];
  load_matrices(ar, left + ((lane % 16) * 16) + (lane / 16 * 8));
  if (b_transposed) {  // (8, 16): n by k
    load_matrices(br, right + ((lane % 8) * 16) + (lane / 8 % 2 * 8));
  } else {  // (16, 8): k by n
    load_matrices_transposed(br, right + ((lane % 16) * 8));
  }
  float c[4] = {};
  const uint32_t first[2] = {br[0], br[1]};
  mma_16x8x16<T>(c, ar, first);
  for (int i = 0; i < 4; ++i) d[(lane / 4 + (i / 2 * 8)) * 8 + (lane % 4 * 2) + (i % 2)] = c[i];
}

void test_barriers() {
  std::vector<float> x(4 * 128);
  std::iota(x.begin(), x.end(), 1.0f);
  bool same = true;
  for (uint32_t schedule = 0; schedule < 5; ++schedule) {
    emulated::set_schedule(schedule);
    for (const bool with_barrier : {true, false}) {
      std::vector<float> y(4);
      launch(sum_block, dim3(4), 128, 4 * sizeof(float), nullptr, x.data(), y.data(), with_barrier);
      bool right = true;
      for (size_t i = 0; i < 4; ++i) right = right && y[i] == 128 * (static_cast<float>(i) * 128 + 64.5f);
      if (with_barrier) check(right, "sums under schedule " + std::to_string(schedule));
      same = same && right;
    }
  }
  check(!same, "a missing barrier shows under some schedule");
  emulated::set_schedule(0);
  bool refused = false;
  try {
    launch(stuck, dim3(1), 64, 0, nullptr);
  } catch (const std::logic_error&) {
    refused = true;
  }
  check(refused, "a barrier that not all reach is an error");
}

__global__ void exchange_numbers(unsigned* y) {
  const unsigned lane = threadIdx.x;
  y[lane] = __reduce_max_sync(kAllLanes, (lane * 7 + 3) % 32 + (lane == 5 ? 0x80000000u : 0));
  y[32 + lane] = __byte_perm(0x33221100u, 0x77665544u, 0x7052u + lane % 8 * 0x100u);
}

void test_numbers() {
  std::vector<unsigned> y(64);
  launch(exchange_numbers, dim3(1), 32, 0, nullptr, y.data());
  bool right = true;
  for (unsigned lane = 0; lane < 32; ++lane) {
    right = right && y[lane] == 0x80000006u && y[32 + lane] == 0x77005522u + lane % 8 * 0x110000u;
  }
  check(right, "the largest number of a warp, and bytes in another order");
  check(subtract<float16>(0x64086401u, 0x64086408u) == 0x0000c700u, "1024 + 1 less 1024 + 8");
  check(subtract<bfloat16>(0x43084301u, 0x43084308u) == 0x0000c0e0u, "128 + 1 less 128 + 8");
}

template <class T>
void test_product() {
  for (const bool transposed : {false, true}) {
    std::vector<T> a(16 * 16), b(16 * 16);
    Floats left = Floats::normal(256), right = Floats::normal(256);
    for (size_t i = 0; i < 256; ++i) a[i] = from_float<T>(left[static_cast<int64_t>(i)]);
    for (size_t i = 0; i < 256; ++i) b[i] = from_float<T>(right[static_cast<int64_t>(i)]);
    std::vector<float> d(16 * 8);
    launch(product<T>, dim3(1), 32, 1024, nullptr, a.data(), b.data(), d.data(), transposed);
    double worst = 0;
    for (size_t m = 0; m < 16; ++m) {
      for (size_t n = 0; n < 8; ++n) {
        double sum = 0;
        for (size_t k = 0; k < 16; ++k) {
          sum += double{to_float(a[m * 16 + k])} * to_float(b[transposed ? n * 16 + k : k * 8 + n]);
        }
        worst = std::max(worst, std::abs(sum - double{d[m * 8 + n]}));
      }
    }
    check(worst < 1e-5, "a product of 16x16 and 16x8");
  }
}

}  // namespace
}  // namespace edge::test

int main() {
  edge::test::test_barriers();
  edge::test::test_numbers();
  edge::test::test_product<edge::float16>();
  edge::test::test_product<edge::bfloat16>();
  std::printf("%d passed, %d failed\n", edge::test::count().passed, edge::test::count().failed);
  return edge::test::count().failed == 0 ? 0 : 1;
}
