// Tensors as the nodes of a vendor's graph hand them to us, and how wrong ones are refused.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

namespace edge {

// What was wrong, what was expected, what was found, and what to do, as std::invalid_argument.
[[noreturn]] void refuse(const std::string& what, const std::string& expected, const std::string& found,
                         const std::string& todo);

// The data and shape of a tensor, which it does not own. A vendor's tensor adds the vendor's element type.
struct Shaped {
  static constexpr size_t kMaxRank = 8;
  void* data = nullptr;
  size_t rank = 0;
  std::array<int64_t, kMaxRank> dims{};

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
  std::string shape() const;
  // Refuses any other shape, -1 standing for any size. `name` is the input's in op.py.
  void expect(const char* name, std::initializer_list<int64_t> dims) const;
};

// The input whose type and shape an output has, and the input whose last axis then takes the place of its last.
struct ShapeRule {
  size_t like;
  int last_of = -1;
};

}  // namespace edge
