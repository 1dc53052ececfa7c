// edge::Mamba2Mixer for ONNX Runtime.
#include "../native/ort_op.h"
#include "shape.h"

namespace edge {
namespace {

using namespace mamba2_mixer;

class Mamba2Mixer : public NodeKernel {
 public:
  explicit Mamba2Mixer(const NodeInfo& info) : kernels_(*info.settings().kernels) {
    args_.groups = info.integer("groups");
    conv_dim_ = info.integer("conv_dim");
    args_.eps = info.number("eps");
    args_.dt_min = info.number("dt_min");
    args_.dt_max = info.number("dt_max");
    std::array<Tensor, kPastConv> parameters;
    for (size_t i = kConvWeight; i < kPastConv; ++i) {
      const auto parameter = info.constant(i);
      if (!parameter) return;  // computed: their shapes are looked at in every run
      parameters[i] = *parameter;
    }
    read_sizes(parameters, conv_dim_, args_);
    sizes_known_ = true;
  }

  void compute(const NodeRun& run) override {
    Mamba2MixerArgs args = args_;
    if (!sizes_known_) {
      std::array<Tensor, kPastConv> parameters;
      for (size_t i = kConvWeight; i < kPastConv; ++i) parameters[i] = run.input(i);
      read_sizes(parameters, conv_dim_, args);
    }
    const Tensor proj = run.input(kProj), past_conv = run.input(kPastConv), past_ssm = run.input(kPastSsm);
    read_block(proj, past_conv, past_ssm, conv_dim_, args);
    const auto floats = [&](size_t index) { return static_cast<const float*>(run.data(index)); };
    args.proj = proj.as<const float>();
    args.conv_weight = floats(kConvWeight);
    args.conv_bias = floats(kConvBias);
    args.dt_bias = floats(kDtBias);
    args.a_log = floats(kALog);
    args.d = floats(kD);
    args.norm_weight = floats(kNormWeight);
    args.past_conv = past_conv.as<const float>();
    args.past_ssm = past_ssm.data;
    args.ssm_type = type_of(past_ssm);
    args.y = static_cast<float*>(run.output(0, {args.batch, args.length, args.heads * args.head_dim}));
    args.present_conv = static_cast<float*>(run.output(1, past_conv));
    args.present_ssm = run.output(2, past_ssm);
    kernels_.mamba2_mixer(args, run.parallel());
  }

 private:
  const Kernels& kernels_;
  Mamba2MixerArgs args_{};
  int64_t conv_dim_ = 0;
  bool sizes_known_ = false;
};

}  // namespace

void add_mamba2_mixer(std::vector<OperatorType>& types) {
  constexpr auto kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  for (const auto state : {kFloat, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16}) {
    std::vector<Port> inputs(kPastSsm, Port{kFloat});
    inputs.push_back({state});
    types.push_back({"Mamba2Mixer",
                     std::move(inputs),
                     {{kFloat}, {kFloat}, {state}},
                     {{kProj, kNormWeight}, {kPastConv}, {kPastSsm}},
                     [](const NodeInfo& info) { return std::unique_ptr<NodeKernel>(new Mamba2Mixer(info)); }});
  }
}

}  // namespace edge
