#include "tensor.h"

#include <algorithm>
#include <stdexcept>

namespace edge {
namespace {

std::string shape_text(const int64_t* dims, size_t rank) {
  std::string text = "(";
  for (size_t i = 0; i < rank; ++i) text += (i > 0 ? ", " : "") + (dims[i] < 0 ? "any" : std::to_string(dims[i]));
  return text + ")";
}

}  // namespace

void refuse(const std::string& what, const std::string& expected, const std::string& found, const std::string& todo) {
  throw std::invalid_argument(what + ": expected " + expected + ", found " + found + ". " + todo);
}

std::string Shaped::shape() const { return shape_text(dims.data(), rank); }

void Shaped::expect(const char* name, std::initializer_list<int64_t> expected) const {
  const auto fits = [](int64_t want, int64_t found) { return want < 0 || want == found; };
  if (rank == expected.size() && std::equal(expected.begin(), expected.end(), dims.begin(), fits)) return;
  refuse(std::string("The shape of ") + name, shape_text(expected.begin(), expected.size()), shape(),
         "Export the model again.");
}

}  // namespace edge
