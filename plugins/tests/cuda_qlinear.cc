// edge::QLinear's CUDA kernels on NumPy arrays.
#include <pybind11/stl.h>

#include "../edge_plugins/qlinear/cuda.h"
#include "cuda_module.h"
#include "device_weight.h"

namespace edge::test {
namespace {

Floats qlinear(const Floats& x, const py::array& weight, const Scales& scales, int64_t block_size, int bits,
               const std::string& type) {
  Device device;
  cuda::QLinearArgs args{};
  args.type = activation_type(type);
  args.weight = upload_weight(device, weight, scales, block_size, bits);
  std::vector<py::ssize_t> shape = State::shape_of(x);
  if (shape.empty() || shape.back() != args.weight.in) expect(x, "x", {-1, -1, args.weight.in});
  args.tokens = x.size() / args.weight.in;
  shape.back() = args.weight.out;
  args.x = device.upload_as(x, args.type);
  args.y = device.room(static_cast<size_t>(args.tokens * args.weight.out) * size_of(args.type));
  cuda::qlinear(args, device.room(cuda::qlinear_workspace(args)), nullptr);
  synchronize();
  return device.download_as(args.y, args.type, shape);
}

// Bytes for so many tokens.
size_t workspace(int64_t tokens, const py::array& weight, const Scales& scales, int64_t block_size, int bits,
                 const std::string& type) {
  Device device;
  cuda::QLinearArgs args{};
  args.tokens = tokens;
  args.type = activation_type(type);
  args.weight = upload_weight(device, weight, scales, block_size, bits);
  return cuda::qlinear_workspace(args);
}

}  // namespace

void bind_qlinear(py::module_& m) {
  using py::arg;
  const auto none = py::none();
  m.def("qlinear", &qlinear, py::kw_only(), arg("x"), arg("weight"), arg("scales") = none, arg("block_size") = 0,
        arg("bits") = 8, arg("type") = "float32");
  m.def("qlinear_workspace", &workspace, py::kw_only(), arg("tokens"), arg("weight"), arg("scales") = none,
        arg("block_size") = 0, arg("bits") = 8, arg("type") = "float32");
}

}  // namespace edge::test
