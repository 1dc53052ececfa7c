// edge::QLinear for ONNX Runtime.
#include "../native/packed_weight.h"

namespace edge {
namespace {

class QLinear : public NodeKernel {
 public:
  explicit QLinear(const NodeInfo& info)
      : kernels_(*info.settings().kernels),
        exact_(info.settings().exact),
        weight_(info, 1, 2, "weight", info.integer("block_size", 0)) {}

  void compute(const NodeRun& run) override {
    weight_.ready();
    Tensor x = run.input(0);
    if (x.rank == 0 || x.dims[x.rank - 1] != weight_.in()) {
      refuse("The last axis of x", std::to_string(weight_.in()), x.shape(), "Export the model again.");
    }
    QLinearArgs args{};
    args.tokens = 1;
    for (size_t i = 0; i + 1 < x.rank; ++i) args.tokens *= x.dims[i];
    args.x = x.as<const float>();
    args.weight = weight_.matrices();
    args.exact = exact_;
    x.dims[x.rank - 1] = weight_.out();
    args.y = static_cast<float*>(run.output(0, x));
    kernels_.qlinear(args, run.parallel());
  }

 private:
  const Kernels& kernels_;
  const bool exact_;
  const NodeWeight weight_;
};

}  // namespace

void add_qlinear(std::vector<OperatorType>& types) {
  constexpr auto kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  for (const auto weight : {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT4, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8,
                            ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16}) {
    types.push_back({"QLinear", {{kFloat}, {weight}, {kFloat, true}}, {{kFloat}}, {{0, 1}}, [](const NodeInfo& info) {
                       return std::unique_ptr<NodeKernel>(new QLinear(info));
                     }});
  }
}

}  // namespace edge
