// edge::Mamba2Mixer for ONNX Runtime.
#include "../native/ort_op.h"

namespace edge {
namespace {

enum Input : size_t { kProj, kConvWeight, kConvBias, kDtBias, kALog, kD, kNormWeight, kPastConv, kPastSsm };

constexpr const char* kNames[] = {"proj", "conv_weight", "conv_bias", "dt_bias", "a_log",
                                  "d",    "norm_weight", "past_conv", "past_ssm"};

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
    read_sizes(parameters, args_);
    sizes_known_ = true;
  }

  void compute(const NodeRun& run) override {
    Mamba2MixerArgs args = args_;
    if (!sizes_known_) {
      std::array<Tensor, kPastConv> parameters;
      for (size_t i = kConvWeight; i < kPastConv; ++i) parameters[i] = run.input(i);
      read_sizes(parameters, args);
    }
    const Tensor proj = run.input(kProj), past_conv = run.input(kPastConv), past_ssm = run.input(kPastSsm);
    const int64_t inner = args.heads * args.head_dim;
    proj.expect("proj", {-1, -1, inner + conv_dim_ + args.heads});
    args.batch = proj.dims[0];
    args.length = proj.dims[1];
    past_conv.expect("past_conv", {args.batch, conv_dim_, args.kernel - 1});
    past_ssm.expect("past_ssm", {args.batch, args.heads, args.head_dim, args.state});
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
    args.y = static_cast<float*>(run.output(0, {args.batch, args.length, inner}));
    args.present_conv = static_cast<float*>(run.output(1, past_conv));
    args.present_ssm = run.output(2, past_ssm);
    kernels_.mamba2_mixer(args, run.parallel());
  }

 private:
  // The sizes follow from the parameters' shapes; refuses parameters that contradict each other.
  void read_sizes(const std::array<Tensor, kPastConv>& parameters, Mamba2MixerArgs& args) const {
    args.heads = parameters[kDtBias].rank == 1 ? parameters[kDtBias].dims[0] : 0;
    const int64_t inner = parameters[kNormWeight].rank == 1 ? parameters[kNormWeight].dims[0] : 0;
    args.kernel = parameters[kConvWeight].rank == 2 ? parameters[kConvWeight].dims[1] : 0;
    args.head_dim = args.heads > 0 ? inner / args.heads : 0;
    args.state = args.groups > 0 ? (conv_dim_ - inner) / (2 * args.groups) : 0;
    const bool whole = args.heads > 0 && args.groups > 0 && args.kernel > 1 && args.heads % args.groups == 0 &&
                       args.head_dim > 0 && args.state > 0 && inner == args.heads * args.head_dim &&
                       conv_dim_ == inner + 2 * args.groups * args.state;
    if (!whole) {
      refuse("The sizes of Mamba2Mixer",
             "conv_dim = heads * head_dim + 2 * groups * state, heads a multiple of groups, at least 2 taps",
             "conv_dim " + std::to_string(conv_dim_) + ", groups " + std::to_string(args.groups) + ", heads " +
                 std::to_string(args.heads) + ", inner " + std::to_string(inner) + ", taps " +
                 std::to_string(args.kernel),
             "Export the model again.");
    }
    parameters[kConvWeight].expect(kNames[kConvWeight], {conv_dim_, args.kernel});
    parameters[kConvBias].expect(kNames[kConvBias], {conv_dim_});
    for (const size_t i : {kDtBias, kALog, kD}) parameters[i].expect(kNames[i], {args.heads});
  }

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
