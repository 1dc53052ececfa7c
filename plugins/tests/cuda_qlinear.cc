// edge::QLinear's CUDA kernels on NumPy arrays.
#include <pybind11/stl.h>

#include "../edge_plugins/qlinear/cuda.h"
#include "cuda_module.h"
#include "device_weight.h"

namespace edge::test {
namespace {

class QLinearCall : public Call {
 public:
  QLinearCall(const Floats& x, const py::array& weight, const Scales& scales, int64_t block_size, int bits,
              const std::string& type);
  void start(Stream stream) override { cuda::qlinear(args_, workspace_, arrivals(), stream); }
  py::object result() const override { return device_.download_as(args_.y, args_.type, shape_); }

 private:
  Device device_;
  cuda::QLinearArgs args_{};
  std::vector<py::ssize_t> shape_;  // of y
  void* workspace_;
};

QLinearCall::QLinearCall(const Floats& x, const py::array& weight, const Scales& scales, int64_t block_size, int bits,
                         const std::string& type)
    : shape_(State::shape_of(x)) {
  args_.type = activation_type(type);
  args_.weight = upload_weight(device_, weight, scales, block_size, bits);
  if (shape_.empty() || shape_.back() != args_.weight.in) expect(x, "x", {-1, -1, args_.weight.in});
  args_.tokens = x.size() / args_.weight.in;
  shape_.back() = args_.weight.out;
  args_.x = device_.upload_as(x, args_.type);
  args_.y = device_.room(static_cast<size_t>(args_.tokens * args_.weight.out) * size_of(args_.type));
  workspace_ = device_.room(cuda::qlinear_workspace(args_));
}

// Bytes for so many tokens.
size_t product_workspace(int64_t tokens, const py::array& weight, const Scales& scales, int64_t block_size, int bits,
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
  py::class_<QLinearCall, Call>(m, "qlinear", py::module_local())
      .def(py::init<const Floats&, const py::array&, const Scales&, int64_t, int, const std::string&>(), py::kw_only(),
           arg("x"), arg("weight"), arg("scales") = none, arg("block_size") = 0, arg("bits") = 8,
           arg("type") = "float32");
  m.def("qlinear_workspace", &product_workspace, py::kw_only(), arg("tokens"), arg("weight"), arg("scales") = none,
        arg("block_size") = 0, arg("bits") = 8, arg("type") = "float32");
}

}  // namespace edge::test
