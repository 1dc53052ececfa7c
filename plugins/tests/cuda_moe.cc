// edge::MoE's CUDA kernels on NumPy arrays.
#include <pybind11/stl.h>

#include "../edge_plugins/moe/cuda.h"
#include "cuda_module.h"
#include "device_weight.h"

namespace edge::test {
namespace {

Activation activation_of(const std::string& name) {
  if (name == "relu2") return Activation::kRelu2;
  if (name == "gelu") return Activation::kGelu;
  if (name == "silu_gated") return Activation::kSiluGated;
  throw std::invalid_argument("activation: expected relu2, gelu or silu_gated, found " + name + ".");
}

Scoring scoring_of(const std::string& name) {
  if (name == "sigmoid") return Scoring::kSigmoid;
  if (name == "softmax") return Scoring::kSoftmax;
  throw std::invalid_argument("scoring: expected sigmoid or softmax, found " + name + ".");
}

class MoeCall : public Call {
 public:
  MoeCall(const Floats& x, const Floats& router_logits, const Floats& correction_bias, const py::array& up_weight,
          const py::array& down_weight, int64_t top_k, int64_t n_group, int64_t topk_group, bool norm_topk_prob,
          float routed_scaling_factor, const Scales& up_scales, const Scales& down_scales, int64_t block_size,
          const std::string& activation, const std::string& scoring, int bits, const std::string& type);
  void start(Stream stream) override { cuda::moe(args_, workspace_, arrivals(), stream); }
  py::object result() const override { return device_.download_as(args_.y, args_.type, shape_); }

 private:
  Device device_;
  cuda::MoeArgs args_{};
  std::vector<py::ssize_t> shape_;  // of y
  void* workspace_;
};

MoeCall::MoeCall(const Floats& x, const Floats& router_logits, const Floats& correction_bias,
                 const py::array& up_weight, const py::array& down_weight, int64_t top_k, int64_t n_group,
                 int64_t topk_group, bool norm_topk_prob, float routed_scaling_factor, const Scales& up_scales,
                 const Scales& down_scales, int64_t block_size, const std::string& activation,
                 const std::string& scoring, int bits, const std::string& type)
    : shape_(State::shape_of(x)) {
  args_.type = activation_type(type);
  args_.up = upload_weight(device_, up_weight, up_scales, block_size, bits);
  args_.down = upload_weight(device_, down_weight, down_scales, block_size, bits);
  args_.width = args_.up.in;
  args_.intermediate = args_.down.in;
  args_.experts = up_weight.shape(0);
  args_.top_k = top_k;
  args_.n_group = n_group;
  args_.topk_group = topk_group;
  args_.norm_topk_prob = norm_topk_prob;
  args_.routed_scaling_factor = routed_scaling_factor;
  args_.activation = activation_of(activation);
  args_.scoring = scoring_of(scoring);
  expect(x, "x", {-1, -1, args_.width});
  expect(router_logits, "router_logits", {x.shape(0), x.shape(1), args_.experts});
  expect(correction_bias, "correction_bias", {args_.experts});
  args_.tokens = x.shape(0) * x.shape(1);
  args_.x = device_.upload_as(x, args_.type);
  args_.router_logits = device_.upload<float>(router_logits);
  args_.correction_bias = device_.upload<float>(correction_bias);
  args_.y = device_.room(static_cast<size_t>(x.size()) * size_of(args_.type));
  workspace_ = device_.room(cuda::moe_workspace(args_));
}

}  // namespace

void bind_moe(py::module_& m) {
  using py::arg;
  const auto none = py::none();
  py::class_<MoeCall, Call>(m, "moe", py::module_local())
      .def(py::init<const Floats&, const Floats&, const Floats&, const py::array&, const py::array&, int64_t, int64_t,
                    int64_t, bool, float, const Scales&, const Scales&, int64_t, const std::string&, const std::string&,
                    int, const std::string&>(),
           py::kw_only(), arg("x"), arg("router_logits"), arg("correction_bias"), arg("up_weight"), arg("down_weight"),
           arg("top_k"), arg("n_group"), arg("topk_group"), arg("norm_topk_prob"), arg("routed_scaling_factor"),
           arg("up_scales") = none, arg("down_scales") = none, arg("block_size") = 0, arg("activation") = "relu2",
           arg("scoring") = "sigmoid", arg("bits") = 8, arg("type") = "float32");
}

}  // namespace edge::test
