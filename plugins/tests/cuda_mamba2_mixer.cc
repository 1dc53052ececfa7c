// The Mamba-2 mixer's CUDA kernels on NumPy arrays.
#include "../edge_plugins/mamba2_mixer/cuda.h"
#include "cuda_module.h"
#include "device_array.h"

namespace edge::test {
namespace {

// The sizes, from arrays that agree with each other.
cuda::Mamba2MixerArgs sizes_of(const Floats& proj, const Floats& conv_weight, const py::array& past_ssm, int64_t groups,
                               int64_t conv_dim, float eps, float dt_min, float dt_max, Type type) {
  expect(proj, "proj", {-1, -1, -1});
  expect(past_ssm, "past_ssm", {proj.shape(0), -1, -1, -1});
  expect(conv_weight, "conv_weight", {conv_dim, -1});
  cuda::Mamba2MixerArgs a{};
  a.batch = proj.shape(0);
  a.length = proj.shape(1);
  a.heads = past_ssm.shape(1);
  a.head_dim = past_ssm.shape(2);
  a.groups = groups;
  a.state = past_ssm.shape(3);
  a.kernel = conv_weight.shape(1);
  a.eps = eps;
  a.dt_min = dt_min;
  a.dt_max = dt_max;
  a.type = type;
  a.ssm_type = type_of(past_ssm, "past_ssm");
  if (const char* reason = cuda::mamba2_mixer_unsupported(a)) throw std::invalid_argument(reason);
  expect(proj, "proj", {a.batch, a.length, Mamba2MixerSizes(a).proj_dim});
  return a;
}

class Mamba2MixerCall : public Call {
 public:
  Mamba2MixerCall(const Floats& proj, const Floats& conv_weight, const Floats& conv_bias, const Floats& dt_bias,
                  const Floats& a_log, const Floats& d, const Floats& norm_weight, const Floats& past_conv,
                  const py::array& past_ssm, int64_t groups, int64_t conv_dim, float eps, float dt_min, float dt_max,
                  bool inplace, const std::string& type);
  void start(Stream stream) override { cuda::mamba2_mixer(args_, workspace_, arrivals(), stream); }
  py::object result() const override;

 private:
  Device device_;
  cuda::Mamba2MixerArgs args_;
  void* workspace_;
  py::dtype ssm_dtype_;
};

Mamba2MixerCall::Mamba2MixerCall(const Floats& proj, const Floats& conv_weight, const Floats& conv_bias,
                                 const Floats& dt_bias, const Floats& a_log, const Floats& d, const Floats& norm_weight,
                                 const Floats& past_conv, const py::array& past_ssm, int64_t groups, int64_t conv_dim,
                                 float eps, float dt_min, float dt_max, bool inplace, const std::string& type)
    : args_(sizes_of(proj, conv_weight, past_ssm, groups, conv_dim, eps, dt_min, dt_max, activation_type(type))),
      ssm_dtype_(past_ssm.dtype()) {
  cuda::Mamba2MixerArgs& a = args_;
  Device& device = device_;
  expect(past_conv, "past_conv", {a.batch, conv_dim, a.kernel - 1});
  a.proj = device.upload_as(proj, a.type);
  a.conv_weight = device.upload<float>(conv_weight);
  a.conv_bias = device.upload<float>(conv_bias);
  a.dt_bias = device.upload<float>(dt_bias);
  a.a_log = device.upload<float>(a_log);
  a.d = device.upload<float>(d);
  a.norm_weight = device.upload<float>(norm_weight);
  auto* conv = device.upload<float>(past_conv);
  void* ssm = device.upload(past_ssm);
  a.past_conv = conv;
  a.past_ssm = ssm;
  a.present_conv = static_cast<float*>(present_of(device, conv, past_conv, inplace));
  a.present_ssm = present_of(device, ssm, past_ssm, inplace);
  a.y = device.room(static_cast<size_t>(a.batch * a.length * a.heads * a.head_dim) * size_of(a.type));
  workspace_ = device.room(cuda::mamba2_mixer_workspace(a));
}

py::object Mamba2MixerCall::result() const {
  const cuda::Mamba2MixerArgs& a = args_;
  const int64_t conv_dim = Mamba2MixerSizes(a).conv_dim;
  return py::make_tuple(device_.download_as(a.y, a.type, {a.batch, a.length, a.heads * a.head_dim}),
                        device_.download(a.present_conv, py::dtype::of<float>(), {a.batch, conv_dim, a.kernel - 1}),
                        device_.download(a.present_ssm, ssm_dtype_, {a.batch, a.heads, a.head_dim, a.state}));
}

}  // namespace

void bind_mamba2_mixer(py::module_& m) {
  using namespace py::literals;
  py::class_<Mamba2MixerCall, Call>(m, "mamba2_mixer", py::module_local())
      .def(py::init<const Floats&, const Floats&, const Floats&, const Floats&, const Floats&, const Floats&,
                    const Floats&, const Floats&, const py::array&, int64_t, int64_t, float, float, float, bool,
                    const std::string&>(),
           py::kw_only(), "proj"_a, "conv_weight"_a, "conv_bias"_a, "dt_bias"_a, "a_log"_a, "d"_a, "norm_weight"_a,
           "past_conv"_a, "past_ssm"_a, "groups"_a, "conv_dim"_a, "eps"_a, "dt_min"_a, "dt_max"_a, "inplace"_a = false,
           "type"_a = "float32");
}

}  // namespace edge::test
