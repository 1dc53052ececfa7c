// edge::Mamba2Mixer for TensorRT.
#include "../native/trt_plugin.h"
#include "cuda.h"
#include "shape.h"

namespace edge::trt {
namespace {

using namespace mamba2_mixer;
using cuda::Mamba2MixerArgs;

class Mamba2Mixer final : public KernelNode<Mamba2MixerArgs, cuda::mamba2_mixer_unsupported,
                                            cuda::mamba2_mixer_workspace, cuda::mamba2_mixer> {
 public:
  explicit Mamba2Mixer(const Attributes& attributes)
      : KernelNode(
            {
                {kNames[kProj], kFloats},
                {kNames[kConvWeight], kFloat32},
                {kNames[kConvBias], kFloat32},
                {kNames[kDtBias], kFloat32},
                {kNames[kALog], kFloat32},
                {kNames[kD], kFloat32},
                {kNames[kNormWeight], kFloat32},
                {kNames[kPastConv], kFloat32},
                {kNames[kPastSsm], kFloats},
            },
            {{kProj, kNormWeight}, {kPastConv}, {kPastSsm}}),
        conv_dim_(attributes.integer("conv_dim")) {
    args_.groups = attributes.integer("groups");
    args_.eps = attributes.number("eps");
    args_.dt_min = attributes.number("dt_min");
    args_.dt_max = attributes.number("dt_max");
  }

 private:
  Mamba2MixerArgs arguments(const Call& call) const override {
    const auto& in = call.inputs;
    Mamba2MixerArgs args = args_;
    read_sizes(in, conv_dim_, args);
    read_block(in[kProj], in[kPastConv], in[kPastSsm], conv_dim_, args);
    args.type = type_of(in[kProj]);
    args.ssm_type = type_of(in[kPastSsm]);
    args.proj = in[kProj].data;
    args.conv_weight = in[kConvWeight].as<const float>();
    args.conv_bias = in[kConvBias].as<const float>();
    args.dt_bias = in[kDtBias].as<const float>();
    args.a_log = in[kALog].as<const float>();
    args.d = in[kD].as<const float>();
    args.norm_weight = in[kNormWeight].as<const float>();
    args.past_conv = in[kPastConv].as<const float>();
    args.past_ssm = in[kPastSsm].data;
    args.y = call.outputs[0];
    args.present_conv = static_cast<float*>(call.outputs[1]);
    args.present_ssm = call.outputs[2];
    return args;
  }

  const int64_t conv_dim_;
  Mamba2MixerArgs args_{};
};

}  // namespace

OperatorType mamba2_mixer() {
  using Field = nv::PluginFieldType;
  return {"Mamba2Mixer",
          {{"groups", Field::kINT64},
           {"conv_dim", Field::kINT64},
           {"eps", Field::kFLOAT32},
           {"dt_min", Field::kFLOAT32},
           {"dt_max", Field::kFLOAT32}},
          [](const Attributes& attributes) { return std::unique_ptr<Node>(new Mamba2Mixer(attributes)); }};
}

}  // namespace edge::trt
