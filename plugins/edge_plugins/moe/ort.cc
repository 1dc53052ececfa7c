// edge::MoE for ONNX Runtime.
#include "../native/packed_weight.h"

namespace edge {
namespace {

Activation activation_of(const std::string& name) {
  if (name == "relu2") return Activation::kRelu2;
  if (name == "gelu") return Activation::kGelu;
  if (name == "silu_gated") return Activation::kSiluGated;
  refuse("The attribute activation of MoE", "relu2, gelu or silu_gated", "'" + name + "'", "Export the model again.");
}

class MoE : public NodeKernel {
 public:
  explicit MoE(const NodeInfo& info)
      : kernels_(*info.settings().kernels),
        up_(info, 3, 5, "up_weight", info.integer("block_size", 0)),
        down_(info, 4, 6, "down_weight", info.integer("block_size", 0)) {
    args_.activation = activation_of(info.text("activation", "relu2"));
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
    check(info);
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
  void check(const NodeInfo& info) {
    const char* todo = "Export the model again.";
    const int64_t gates = args_.activation == Activation::kSiluGated ? 2 : 1;
    if (up_.out() != gates * args_.intermediate || down_.out() != args_.width || down_.count() != args_.experts) {
      const auto text = [](const NodeWeight& w) {
        return "(" + std::to_string(w.count()) + ", " + std::to_string(w.in()) + ", " + std::to_string(w.out()) + ")";
      };
      refuse("The weights of MoE",
             "up (experts, width, intermediate, twice that if gated) and down (experts, "
             "intermediate, width)",
             text(up_) + " and " + text(down_), todo);
    }
    const auto within = [&](const char* name, int64_t value, int64_t highest) {
      if (value >= 1 && value <= highest) return;
      refuse(std::string("The attribute ") + name + " of MoE", "1 to " + std::to_string(highest), std::to_string(value),
             todo);
    };
    within("n_group", args_.n_group, args_.experts);
    if (args_.experts % args_.n_group != 0) {
      refuse("The attribute n_group of MoE", "a divisor of " + std::to_string(args_.experts) + " experts",
             std::to_string(args_.n_group), todo);
    }
    within("topk_group", args_.topk_group, args_.n_group);
    within("top_k", args_.top_k, args_.experts / args_.n_group * args_.topk_group);
    if (const auto bias = info.constant(2)) {
      bias->expect("correction_bias", {args_.experts});
      bias_checked_ = true;
    }
  }

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
