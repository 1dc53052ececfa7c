// NumPy arrays as kernels take them: checked shapes, element types, and threads for the module alone.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <atomic>
#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "isa.h"

namespace edge {

namespace py = pybind11;

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;
using Floats = Array<float>;

inline std::string shape_text(const py::array& array) { return py::str(array.attr("shape")); }

// Refuses any other shape, -1 standing for any size.
inline void expect(const py::array& array, const char* name, std::initializer_list<int64_t> dims) {
  bool fits = static_cast<size_t>(array.ndim()) == dims.size();
  std::string text;
  py::ssize_t axis = 0;
  for (const int64_t dim : dims) {
    fits = fits && (dim < 0 || array.shape(axis) == dim);
    text += (axis++ == 0 ? "" : ", ") + (dim < 0 ? "any" : std::to_string(dim));
  }
  if (!fits)
    throw std::invalid_argument(std::string(name) + ": expected the shape (" + text + "), found " + shape_text(array) +
                                ".");
}

inline std::string dtype_of(const py::array& array) { return py::str(array.dtype().attr("name")); }

// bfloat16 is a uint16 array or one of ml_dtypes.
inline Type type_of(const py::array& array, const char* name) {
  const std::string dtype = dtype_of(array);
  if (dtype == "float32") return Type::kFloat32;
  if (dtype == "float16") return Type::kFloat16;
  if (dtype == "bfloat16" || dtype == "uint16") return Type::kBfloat16;
  if (dtype == "int8" || dtype == "int4") return Type::kInt8;
  throw std::invalid_argument(std::string(name) + ": expected float32, float16, bfloat16 (or uint16) or int8, found " +
                              dtype + ". Convert it.");
}

// A state or cache before and after: the given array itself, or the given one and a new one.
struct State {
  State(const py::array& given, const char* name, bool inplace) : type(type_of(given, name)) {
    const bool contiguous = (given.flags() & py::array::c_style) != 0;
    if (inplace && (!contiguous || !given.writeable())) {
      throw std::invalid_argument(std::string(name) + ": expected a contiguous, writable array to work on in place.");
    }
    past = contiguous ? given : py::array::ensure(given, py::array::c_style);
    present = inplace ? past : py::array(past.dtype(), shape_of(past));
  }
  static std::vector<py::ssize_t> shape_of(const py::array& array) {
    return {array.shape(), array.shape() + array.ndim()};
  }
  const void* from() const { return past.data(); }
  void* to() { return present.mutable_data(); }

  Type type;
  py::array past, present;
};

// Runs tasks on threads that live for one call: for tests and tools, which want to choose their number.
class Threads {
 public:
  explicit Threads(int count) : count_(count) {
    if (count < 1) throw std::invalid_argument("threads: expected at least 1, found " + std::to_string(count) + ".");
  }
  Parallel parallel() { return count_ == 1 ? Parallel() : Parallel(this, run); }

 private:
  static void run(void* self, Parallel::Task task, size_t count, void* argument) {
    std::atomic<size_t> next{0};
    const auto work = [&] {
      for (size_t index = next++; index < count; index = next++) task(argument, index);
    };
    std::vector<std::thread> helpers;
    const size_t wanted = std::min(count, static_cast<size_t>(static_cast<Threads*>(self)->count_));
    for (size_t i = 1; i < wanted; ++i) helpers.emplace_back(work);
    work();
    for (std::thread& helper : helpers) helper.join();
  }

  int count_;
};

}  // namespace edge
