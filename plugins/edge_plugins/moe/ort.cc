// edge::MoE for ONNX Runtime.
#include "../native/packed_weight.h"
#include "shape.h"

namespace edge {
namespace {

using namespace moe;

class MoE : public NodeKernel {
 public:
  explicit MoE(const NodeInfo& info)
      : kernels_(*info.settings().kernels),
        up_(info, 3, 5, "up_weight", info.integer("block_size", 0)),
        down_(info, 4, 6, "down_weight", info.integer("block_size", 0)) {
    args_.activation = activation_of(info.text("activation", "relu2"));
    args_.scoring = scoring_of(info.text("scoring", "sigmoid"));
    args_.width = up_.in();
    args_.experts = up_.count();
    args_.intermediate = down_.in();
    args_.top_k = info.integer("top_k");
    args_.n_group = info.integer("n_group");
    args_.topk_group = info.integer("topk_group");
    args_.norm_topk_prob = info.integer("norm_topk_prob") != 0;
    args_.routed_scaling_factor = info.number("routed_scaling_factor");
    args_.exact = info.settings().exact;
    args_.up = up_.matrices();
    args_.down = down_.matrices();
    check_weights(args_, up_.out(), down_.out(), down_.count());
    check_routing(args_);
    if (const auto bias = info.constant(2)) {
      bias->expect("correction_bias", {args_.experts});
      bias_checked_ = true;
    }
  }

  void compute(const NodeRun& run) override {
    up_.ready();
    const Tensor x = run.input(0), logits = run.input(1);
    x.expect("x", {-1, -1, args_.width});
    logits.expect("router_logits", {x.dims[0], x.dims[1], args_.experts});
    if (!bias_checked_) run.input(2).expect("correction_bias", {args_.experts});
    MoeArgs args = args_;
    args.tokens = x.dims[0] * x.dims[1];
    args.x = x.as<const float>();
    args.router_logits = logits.as<const float>();
    args.correction_bias = static_cast<const float*>(run.data(2));
    args.y = static_cast<float*>(run.output(0, x));
    kernels_.moe(args, run.parallel());
  }

 private:
  const Kernels& kernels_;
  const NodeWeight up_, down_;
  MoeArgs args_{};
  bool bias_checked_ = false;
};

}  // namespace

void add_moe(std::vector<OperatorType>& types) {
  constexpr auto kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  for (const auto weight : {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT4, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8,
                            ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16, kFloat}) {
    types.push_back({"MoE",
                     {{kFloat}, {kFloat}, {kFloat}, {weight}, {weight}, {kFloat, true}, {kFloat, true}},
                     {{kFloat}},
                     {{0}},
                     [](const NodeInfo& info) { return std::unique_ptr<NodeKernel>(new MoE(info)); }});
  }
}

}  // namespace edge
