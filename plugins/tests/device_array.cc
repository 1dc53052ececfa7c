#include "device_array.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

#include "../edge_plugins/native/device.h"

namespace edge::test {

#if defined(__CUDACC__)

DeviceMemory::DeviceMemory(size_t bytes) {
  require(cudaMalloc(&data_, bytes == 0 ? 1 : bytes), "cudaMalloc");
  owner_ = std::shared_ptr<void>(data_, [](void* memory) { cudaFree(memory); });
  require(cudaMemset(data_, 0xff, bytes), "cudaMemset");
}
void DeviceMemory::upload(const void* from, size_t bytes) {
  require(cudaMemcpy(data_, from, bytes, cudaMemcpyHostToDevice), "upload");
}
void DeviceMemory::download(void* to, size_t bytes) const {
  require(cudaMemcpy(to, data_, bytes, cudaMemcpyDeviceToHost), "download");
}
void synchronize() { require(cudaDeviceSynchronize(), "the kernels"); }

#else

DeviceMemory::DeviceMemory(size_t bytes) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t used = (bytes + page - 1) / page * page, size = used + page;
  void* pages = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) throw std::bad_alloc();
  owner_ = std::shared_ptr<void>(pages, [size](void* memory) { munmap(memory, size); });
  std::memset(pages, 0xff, used);
  mprotect(static_cast<char*>(pages) + used, page, PROT_NONE);
  data_ = static_cast<char*>(pages) + used - (bytes + 15) / 16 * 16;
}
void DeviceMemory::upload(const void* from, size_t bytes) { std::memcpy(data_, from, bytes); }
void DeviceMemory::download(void* to, size_t bytes) const { std::memcpy(to, data_, bytes); }
void synchronize() {}

#endif

namespace {

// (values) of one width to another.
template <class T>
std::vector<uint8_t> narrow(const Floats& array) {
  std::vector<uint8_t> bytes(static_cast<size_t>(array.size()) * sizeof(T));
  for (py::ssize_t i = 0; i < array.size(); ++i) {
    const T value = from_float<T>(array.data()[i]);
    std::memcpy(bytes.data() + static_cast<size_t>(i) * sizeof(T), &value, sizeof(T));
  }
  return bytes;
}

}  // namespace

void* Device::upload_as(const Floats& array, Type type) {
  if (type == Type::kFloat32) return upload(array);
  const std::vector<uint8_t> bytes = type == Type::kFloat16 ? narrow<float16>(array) : narrow<bfloat16>(array);
  DeviceMemory& memory = add(bytes.size());
  memory.upload(bytes.data(), bytes.size());
  return memory.data();
}

const DeviceMemory& Device::find(const void* at) const {
  for (const DeviceMemory& memory : memory_) {
    if (memory.data() == at) return memory;
  }
  throw std::logic_error("not an address of this device");
}

py::array Device::download(const void* at, const py::dtype& dtype, const std::vector<py::ssize_t>& shape) const {
  py::array array(dtype, shape);
  find(at).download(array.mutable_data(), static_cast<size_t>(array.nbytes()));
  return array;
}

Floats Device::download_as(const void* at, Type type, const std::vector<py::ssize_t>& shape) const {
  Floats array(shape);
  if (type == Type::kFloat32) {
    find(at).download(array.mutable_data(), static_cast<size_t>(array.nbytes()));
    return array;
  }
  std::vector<uint16_t> bits(static_cast<size_t>(array.size()));
  find(at).download(bits.data(), bits.size() * sizeof(uint16_t));
  for (size_t i = 0; i < bits.size(); ++i) {
    array.mutable_data()[i] = type == Type::kFloat16 ? to_float(float16{bits[i]}) : to_float(bfloat16{bits[i]});
  }
  return array;
}

py::object Call::run() {
  start(nullptr);
  synchronize();
  if (arrivals() != nullptr) {
    std::vector<uint32_t> counters(cuda::kArrivals);
    arrivals_.download(counters.data(), counters.size() * sizeof(uint32_t));
    if (std::any_of(counters.begin(), counters.end(), [](uint32_t count) { return count != 0; }))
      throw std::logic_error("a counter of arrivals is not 0 after the call");
  }
  return result();
}

Type activation_type(const std::string& name) {
  if (name == "float32") return Type::kFloat32;
  if (name == "float16") return Type::kFloat16;
  if (name == "bfloat16") return Type::kBfloat16;
  throw std::invalid_argument("type: expected float32, float16 or bfloat16, found " + name + ".");
}

}  // namespace edge::test
