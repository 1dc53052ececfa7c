// NumPy arrays on the device that the CUDA kernels run on: a GPU, or its model on the host.
#pragma once

#include <cstring>
#include <memory>
#include <vector>

#include "../edge_plugins/native/arrays.h"
#include "../edge_plugins/native/arrivals.h"
#include "../edge_plugins/native/stream.h"

namespace edge::test {

// Memory of the device. On the host it ends at a page that may not be touched, and begins as 0xff.
class DeviceMemory {
 public:
  explicit DeviceMemory(size_t bytes);
  explicit DeviceMemory(std::shared_ptr<void> owner) : owner_(std::move(owner)), data_(owner_.get()) {}
  void* data() const { return data_; }
  void upload(const void* from, size_t bytes);
  void download(void* to, size_t bytes) const;

 private:
  std::shared_ptr<void> owner_;
  void* data_ = nullptr;
};

// Waits for all kernels and throws what went wrong in them.
void synchronize();

// What a call of a test takes to the device and back.
class Device {
 public:
  // A copy of the array's bytes.
  template <class T = void>
  T* upload(const py::array& array) {
    const py::array dense = py::array::ensure(array, py::array::c_style);
    DeviceMemory& memory = add(static_cast<size_t>(dense.nbytes()));
    memory.upload(dense.data(), static_cast<size_t>(dense.nbytes()));
    return static_cast<T*>(memory.data());
  }

  // A float32 array as float32, float16 or bfloat16.
  void* upload_as(const Floats& array, Type type);

  // Memory that nothing was written to.
  template <class T = void>
  T* room(size_t bytes) {
    return static_cast<T*>(add(bytes).data());
  }

  // What stands at an address that upload or room gave, as an array of this dtype and shape.
  py::array download(const void* at, const py::dtype& dtype, const std::vector<py::ssize_t>& shape) const;

  // The same, from `type` to float32.
  Floats download_as(const void* at, Type type, const std::vector<py::ssize_t>& shape) const;

 private:
  DeviceMemory& add(size_t bytes) {
    memory_.emplace_back(bytes);
    return memory_.back();
  }
  const DeviceMemory& find(const void* at) const;

  std::vector<DeviceMemory> memory_;
};

// An operator with its tensors and its workspace on the device: to be started as often as wanted.
class Call {
 public:
  virtual ~Call() = default;
  // Queues the kernels on `stream` and waits for nothing.
  virtual void start(Stream stream) = 0;
  // The outputs of what was started.
  virtual py::object result() const = 0;

  // Once, from the beginning to the outputs.
  py::object run();

  // From now on: without counters of arrivals, as calls must do where there are none.
  void leave_out_arrivals() { arrivals_ = DeviceMemory(std::shared_ptr<void>()); }

 protected:
  uint32_t* arrivals() const { return static_cast<uint32_t*>(arrivals_.data()); }

 private:
  DeviceMemory arrivals_{cuda::make_arrivals()};
};

// float32, float16 or bfloat16.
Type activation_type(const std::string& name);

// A present state shares the past one's memory if `inplace`, and is new memory otherwise.
inline void* present_of(Device& device, void* past, const py::array& array, bool inplace) {
  return inplace ? past : device.room(static_cast<size_t>(array.nbytes()));
}

}  // namespace edge::test
