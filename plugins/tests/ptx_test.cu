// The machine that runs PTX on the CPU (ptx/), held to finding what is wrong with kernels, and nothing in sound ones.
#include <cstring>

#include "../edge_plugins/native/device.h"
#include "check.h"

extern "C" void edge_ptx_set_backward(int backward);

namespace edge::test {
namespace {

// What went wrong in a kernel of one block, or nothing.
template <class... P>
std::string run(void (*kernel)(P...), unsigned blocks, unsigned threads, size_t shared_bytes,
                typename Exactly<P>::type... arguments) {
  try {
    launch(kernel, dim3(blocks), threads, shared_bytes, nullptr, arguments...);
    require(cudaDeviceSynchronize(), "");
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

void check_said(const std::string& found, const std::string& expected, const std::string& what) {
  const bool fine = expected.empty() ? found.empty() : found.find(expected) != std::string::npos;
  check(fine, what + ": expected '" + expected + "', found '" + found + "'");
}

template <class T>
struct DeviceArray {
  explicit DeviceArray(size_t size) { require(cudaMalloc(&data, size * sizeof(T)), "cudaMalloc"); }
  ~DeviceArray() { cudaFree(data); }
  T* data;
};

enum class Between { kNothing, kWarp, kBlock };

// Every thread writes its own place and reads that of the thread `away` from it.
template <Between kBetween>
__global__ void read_neighbour(int away, float* y) {
  EDGE_SHARED(memory);
  auto* shared = reinterpret_cast<volatile float*>(memory);
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  shared[thread] = static_cast<float>(thread);
  if (kBetween == Between::kWarp) __syncwarp();
  if (kBetween == Between::kBlock) __syncthreads();
  y[blockIdx.x * blockDim.x + threadIdx.x] = shared[(thread + away) % threads];
}

// Reads first, with or without a barrier before another thread's write.
template <bool kBarrier>
__global__ void write_what_others_read(float* y) {
  EDGE_SHARED(memory);
  auto* shared = reinterpret_cast<volatile float*>(memory);
  shared[threadIdx.x] = 1;
  __syncthreads();
  const float read = shared[(threadIdx.x + 32) % 64];
  if (kBarrier) __syncthreads();
  shared[threadIdx.x] = read + 1;
  y[threadIdx.x] = read;
}

__global__ void write_at(float* y, int stride) { y[(blockIdx.x * blockDim.x + threadIdx.x) * stride] = 1; }

__global__ void write_shared_at(int at) {
  EDGE_SHARED(memory);
  reinterpret_cast<volatile float*>(memory)[at] = 1;
}

__global__ void write_four(float* y) { *reinterpret_cast<float4*>(y + threadIdx.x * 4) = make_float4(1, 2, 3, 4); }

__global__ void some_wait() {
  if (threadIdx.x < 32) __syncthreads();
}

__global__ void half_a_warp_exchanges(float* y) {
  float value = y[threadIdx.x];
  if (value > 0) value = __shfl_xor_sync(kAllLanes, value, 1);
  y[threadIdx.x] = value;
}

template <bool kWait>
__global__ void copy_then_read(const float* x, float* y) {
  EDGE_SHARED(memory);
  auto* shared = reinterpret_cast<float*>(memory);
  copy_async(shared + threadIdx.x * 4, x + threadIdx.x * 4, true);
  commit_async();
  if (kWait) wait_async<0>();
  if (!kWait) wait_async<1>();
  y[threadIdx.x] = shared[threadIdx.x * 4];
}

enum class Wrong { kNothing, kNoBarrier, kNoRelease, kNoAcquisition, kWriteAfterArrival };

// Blocks leave a number for each thread and one more, having read what all of them share; the last one adds the numbers
// up in place of what was read. shared (threads), parts (blocks, threads), more (blocks).
template <Wrong kWrong>
__global__ void finish_by_last(float* shared, float* parts, float* more, unsigned* counter) {
  EDGE_SHARED(memory);
  auto* is_last = reinterpret_cast<volatile unsigned*>(memory);
  const unsigned thread = threadIdx.x, threads = blockDim.x;
  parts[blockIdx.x * threads + thread] = shared[(thread + 1) % threads];
  if (kWrong != Wrong::kNoBarrier) __syncthreads();
  if (thread == 0) {
    if (kWrong != Wrong::kWriteAfterArrival) more[blockIdx.x] = 1;
    if (kWrong != Wrong::kNoRelease) fence_device();
    *is_last = atomicInc(counter, gridDim.x - 1) == gridDim.x - 1 ? 1 : 0;
    if (kWrong != Wrong::kNoAcquisition) fence_device();
    if (kWrong == Wrong::kWriteAfterArrival) more[blockIdx.x] = 1;
  }
  __syncthreads();
  if (*is_last == 0) return;
  float sum = 0;
  for (unsigned block = 0; block < gridDim.x; ++block) sum += parts[block * threads + thread] + more[block];
  shared[thread] = sum;
}

template <Wrong kWrong>
void check_last(const std::string& expected, const std::string& what) {
  constexpr unsigned kBlocks = 3, kThreads = 64;
  DeviceArray<float> shared(kThreads), parts(kBlocks * kThreads), more(kBlocks);
  DeviceArray<unsigned> counter(1);
  require(cudaMemset(counter.data, 0, sizeof(unsigned)), "cudaMemset");
  for (const int backward : {0, 1}) {
    edge_ptx_set_backward(backward);
    for (int time = 0; time < 2; ++time) {
      check_said(run(finish_by_last<kWrong>, kBlocks, kThreads, 16, shared.data, parts.data, more.data, counter.data),
                 expected, what);
    }
  }
  edge_ptx_set_backward(0);
}

void test_arrivals() {
  check_last<Wrong::kNothing>("", "the last block, after all");
  check_last<Wrong::kNoBarrier>("a race", "a block that arrives before its threads have written");
  check_last<Wrong::kNoRelease>("a race", "a block that releases nothing");
  check_last<Wrong::kNoAcquisition>("a race", "a last block that acquires nothing");
  check_last<Wrong::kWriteAfterArrival>("a race", "a write after the arrival");
}

void test_races() {
  DeviceArray<float> y(256);
  const auto neighbour = [&](auto kernel, int away) { return run(kernel, 1, 64, 256, away, y.data); };
  for (const int backward : {0, 1}) {
    edge_ptx_set_backward(backward);
    check_said(neighbour(read_neighbour<Between::kNothing>, 0), "", "a thread's own place");
    check_said(neighbour(read_neighbour<Between::kNothing>, 1), "a race", "another lane's place");
    check_said(neighbour(read_neighbour<Between::kWarp>, 32), "a race", "another warp's place, a barrier of the warp");
    check_said(neighbour(read_neighbour<Between::kBlock>, 32), "", "another warp's place, a barrier of the block");
    check_said(run(write_what_others_read<true>, 1, 64, 256, y.data), "", "a write after others' reads, a barrier");
    check_said(run(write_what_others_read<false>, 1, 64, 256, y.data), "a race", "a write after others' reads");
    check_said(run(write_at, 2, 64, 0, y.data, 1), "", "blocks in places of their own");
    check_said(run(write_at, 2, 64, 0, y.data, 0), "a race", "blocks in one place");
  }
  edge_ptx_set_backward(0);
  check_said(run(read_neighbour<Between::kWarp>, 1, 32, 128, 1, y.data), "", "a barrier of the warp");
}

void test_memory() {
  DeviceArray<float> y(256);
  check_said(run(write_at, 4, 64, 0, y.data, 1), "", "all of an array");
  check_said(run(write_at, 4, 64, 0, y.data + 1, 1), "outside of what was allocated", "one behind an array");
  check_said(run(write_at, 1, 32, 0, nullptr, 1), "outside of what was allocated", "no array");
  check_said(run(write_shared_at, 1, 1, 256, 63), "", "the last of shared memory");
  check_said(run(write_shared_at, 1, 1, 256, 64), "beyond shared memory", "one behind shared memory");
  check_said(run(write_four, 1, 32, 0, y.data + 4), "", "16 bytes at a multiple of 16");
  check_said(run(write_four, 1, 32, 0, y.data + 1), "no multiple of 16", "16 bytes at a multiple of 4");
  check_said(run(write_shared_at, 1, 32, size_t{64} << 10, 0), "a race", "64 KiB of shared memory, asked for");
  check_said(run(write_shared_at, 1, 1, size_t{100} << 10, 0), "shared memory", "more than a small GPU has");
  check_said(run(write_at, 1, 2048, 0, y.data, 1), "invalid configuration", "2048 threads");
}

void test_meetings() {
  DeviceArray<float> x(128), y(128);
  float mixed[32];
  for (int i = 0; i < 32; ++i) mixed[i] = i % 3 == 0 ? -1.0f : 1.0f;
  require(cudaMemcpy(y.data, mixed, sizeof mixed, cudaMemcpyHostToDevice), "upload");
  check_said(run(some_wait, 1, 64, 0), "never reach", "a barrier for one warp of two");
  check_said(run(half_a_warp_exchanges, 1, 32, 0, y.data), "lanes", "an exchange of some lanes");
  check_said(run(copy_then_read<true>, 1, 32, 512, x.data, y.data), "", "a copy that was waited for");
  check_said(run(copy_then_read<false>, 1, 32, 512, x.data, y.data), "has yet to bring", "a copy that was not");
}

}  // namespace
}  // namespace edge::test

int main() {
  edge::test::test_races();
  edge::test::test_arrivals();
  edge::test::test_memory();
  edge::test::test_meetings();
  std::printf("%d passed, %d failed\n", edge::test::count().passed, edge::test::count().failed);
  return edge::test::count().failed == 0 ? 0 : 1;
}
