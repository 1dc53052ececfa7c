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

Floats moe(const Floats& x, const Floats& router_logits, const Floats& correction_bias, const py::array& up_weight,
           const py::array& down_weight, int64_t top_k, int64_t n_group, int64_t topk_group, bool norm_topk_prob,
           float routed_scaling_factor, const Scales& up_scales, const Scales& down_scales, int64_t block_size,
           const std::string& activation, const std::string& scoring, int bits, const std::string& type) {
  Device device;
  cuda::MoeArgs args{};
  args.type = activation_type(type);
  args.up = upload_weight(device, up_weight, up_scales, block_size, bits);
  args.down = upload_weight(device, down_weight, down_scales, block_size, bits);
  args.width = args.up.in;
  args.intermediate = args.down.in;
  args.experts = up_weight.shape(0);
  args.top_k = top_k;
  args.n_group = n_group;
  args.topk_group = topk_group;
  args.norm_topk_prob = norm_topk_prob;
  args.routed_scaling_factor = routed_scaling_factor;
  args.activation = activation_of(activation);
  args.scoring = scoring_of(scoring);
  expect(x, "x", {-1, -1, args.width});
  expect(router_logits, "router_logits", {x.shape(0), x.shape(1), args.experts});
  expect(correction_bias, "correction_bias", {args.experts});
  args.tokens = x.shape(0) * x.shape(1);
  args.x = device.upload_as(x, args.type);
  args.router_logits = device.upload<float>(router_logits);
  args.correction_bias = device.upload<float>(correction_bias);
  args.y = device.room(static_cast<size_t>(x.size()) * size_of(args.type));
  cuda::moe(args, device.room(cuda::moe_workspace(args)), nullptr);
  synchronize();
  return device.download_as(args.y, args.type, State::shape_of(x));
}

}  // namespace

void bind_moe(py::module_& m) {
  using py::arg;
  const auto none = py::none();
  m.def("moe", &moe, py::kw_only(), arg("x"), arg("router_logits"), arg("correction_bias"), arg("up_weight"),
        arg("down_weight"), arg("top_k"), arg("n_group"), arg("topk_group"), arg("norm_topk_prob"),
        arg("routed_scaling_factor"), arg("up_scales") = none, arg("down_scales") = none, arg("block_size") = 0,
        arg("activation") = "relu2", arg("scoring") = "sigmoid", arg("bits") = 8, arg("type") = "float32");
}

}  // namespace edge::test
