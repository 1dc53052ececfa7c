// edge::MoE for TensorRT.
#include "../native/trt_weight.h"
#include "cuda.h"
#include "shape.h"

namespace edge::trt {
namespace {

using cuda::MoeArgs;

enum Input : size_t { kX, kRouterLogits, kCorrectionBias, kUpWeight, kDownWeight, kUpScales, kDownScales };

std::vector<Port> ports(const WeightStorage& storage) {
  std::vector<Port> ports{
      {"x", kFloats},
      {"router_logits", kFloat32},
      {"correction_bias", kFloat32},
      {"up_weight", storage.types()},
      {"down_weight", {}, kUpWeight},
  };
  if (storage.scaled()) ports.insert(ports.end(), {{"up_scales", kFloat32}, {"down_scales", kFloat32}});
  return ports;
}

class MoE final : public KernelNode<MoeArgs, cuda::moe_unsupported, cuda::moe_workspace, cuda::moe> {
 public:
  explicit MoE(const Attributes& attributes, const WeightStorage& storage)
      : KernelNode(ports(storage), {{kX}}), storage_(storage) {
    args_.top_k = attributes.integer("top_k");
    args_.n_group = attributes.integer("n_group");
    args_.topk_group = attributes.integer("topk_group");
    args_.norm_topk_prob = attributes.integer("norm_topk_prob") != 0;
    args_.routed_scaling_factor = attributes.number("routed_scaling_factor");
    args_.activation = edge::moe::activation_of(attributes.text("activation"));
    args_.scoring = edge::moe::scoring_of(attributes.text("scoring"));
  }

 private:
  MoeArgs arguments(const Call& call) const override {
    const auto& in = call.inputs;
    const Tensor& x = in[kX];
    x.expect("x", {-1, -1, -1});
    in[kRouterLogits].expect("router_logits", {x.dims[0], x.dims[1], -1});
    MoeArgs args = args_;
    args.experts = in[kRouterLogits].dims[2];
    in[kCorrectionBias].expect("correction_bias", {args.experts});
    args.up = storage_.matrices("up_weight", in[kUpWeight], in[kUpScales], args.experts);
    args.down = storage_.matrices("down_weight", in[kDownWeight], in[kDownScales], args.experts);
    args.tokens = x.dims[0] * x.dims[1];
    args.width = args.up.in;
    args.intermediate = args.down.in;
    x.expect("x", {-1, -1, args.width});
    edge::moe::check_weights(args, args.up.out, args.down.out, args.experts);
    edge::moe::check_routing(args);
    args.type = type_of(x);
    args.x = x.data;
    args.router_logits = in[kRouterLogits].as<const float>();
    args.correction_bias = in[kCorrectionBias].as<const float>();
    args.y = call.outputs[0];
    return args;
  }

  const WeightStorage storage_;
  MoeArgs args_{};
};

}  // namespace

OperatorType moe() {
  using Field = nv::PluginFieldType;
  return {"MoE",
          {{"top_k", Field::kINT64},
           {"n_group", Field::kINT64},
           {"topk_group", Field::kINT64},
           {"norm_topk_prob", Field::kINT64},
           {"routed_scaling_factor", Field::kFLOAT32},
           {"activation", Field::kCHAR},
           {"scoring", Field::kCHAR, true},
           {"block_size", Field::kINT64, true},
           {"weight_bits", Field::kINT64, true}},
          [](const Attributes& attributes) {
            return std::unique_ptr<Node>(new MoE(attributes, WeightStorage(attributes)));
          }};
}

}  // namespace edge::trt
