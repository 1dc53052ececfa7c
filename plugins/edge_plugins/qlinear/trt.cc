// edge::QLinear for TensorRT.
#include "../native/trt_weight.h"
#include "cuda.h"

namespace edge::trt {
namespace {

using cuda::QLinearArgs;

enum Input : int { kX, kWeight, kScales };

std::vector<Port> ports(const WeightStorage& storage) {
  std::vector<Port> ports{{"x", kFloats}, {"weight", storage.types()}};
  if (storage.scaled()) ports.push_back({"scales", kFloat32});
  return ports;
}

class QLinear final
    : public KernelNode<QLinearArgs, cuda::qlinear_unsupported, cuda::qlinear_workspace, cuda::qlinear> {
 public:
  // The last axis of a packed weight is not y's, but that of its scales is.
  explicit QLinear(const WeightStorage& storage)
      : KernelNode(ports(storage), {{kX, storage.scaled() ? kScales : kWeight}}), storage_(storage) {}

 private:
  QLinearArgs arguments(const Call& call) const override {
    const Tensor& x = call.inputs[kX];
    QLinearArgs args{};
    args.weight = storage_.matrix("weight", call.inputs[kWeight], call.inputs[kScales]);
    if (x.rank == 0 || x.dims[x.rank - 1] != args.weight.in) {
      refuse("The last axis of x", std::to_string(args.weight.in), x.shape(), "Export the model again.");
    }
    args.tokens = 1;
    for (size_t i = 0; i + 1 < x.rank; ++i) args.tokens *= x.dims[i];
    args.type = type_of(x);
    args.x = x.data;
    args.y = call.outputs[0];
    return args;
  }

  const WeightStorage storage_;
};

}  // namespace

OperatorType qlinear() {
  using Field = nv::PluginFieldType;
  return {"QLinear",
          {{"block_size", Field::kINT64, true}, {"weight_bits", Field::kINT64, true}},
          [](const Attributes& attributes) { return std::unique_ptr<Node>(new QLinear(WeightStorage(attributes))); }};
}

}  // namespace edge::trt
