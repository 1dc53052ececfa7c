// edge::CachedAttention for ONNX Runtime.
#include "../native/ort_op.h"
#include "shape.h"

namespace edge {
namespace {

using namespace cached_attention;

class CachedAttention : public NodeKernel {
 public:
  explicit CachedAttention(const NodeInfo& info) : kernels_(*info.settings().kernels) {
    args_.scale = info.number("scale");
    args_.window = info.integer("window");
    check_window(args_.window);
    scaled_ = info.has_input(kPastKeyScale);
    if (scaled_ != info.has_input(kPastValueScale)) {
      refuse("The scales of CachedAttention", "both or none", "one", "Export the model again.");
    }
  }

  void compute(const NodeRun& run) override {
    CachedAttentionArgs args = args_;
    const Tensor query = run.input(kQuery), past_key = run.input(kPastKey), past_value = run.input(kPastValue);
    args.cache_type = type_of(past_key);
    check_scales(scaled_, args.cache_type);
    read_sizes(query, run.input(kKey), run.input(kValue), run.input(kPastLength), past_key, past_value, args);
    args.query = query.as<const float>();
    args.key = static_cast<const float*>(run.data(kKey));
    args.value = static_cast<const float*>(run.data(kValue));
    args.past_length = static_cast<const int64_t*>(run.data(kPastLength));
    args.past_key = past_key.data;
    args.past_value = past_value.data;
    args.y = static_cast<float*>(run.output(0, query));
    args.present_key = run.output(1, past_key);
    args.present_value = run.output(2, past_value);
    if (args.cache_type == Type::kInt8) add_scales(run, args);
    kernels_.cached_attention(args, run.parallel());
  }

 private:
  static void add_scales(const NodeRun& run, CachedAttentionArgs& args) {
    const Tensor key = run.input(kPastKeyScale), value = run.input(kPastValueScale);
    check_scale_shapes(key, value, args);
    args.past_key_scale = key.as<const float>();
    args.past_value_scale = value.as<const float>();
    args.present_key_scale = static_cast<float*>(run.output(3, key));
    args.present_value_scale = static_cast<float*>(run.output(4, value));
  }

  const Kernels& kernels_;
  CachedAttentionArgs args_{};
  bool scaled_ = false;
};

}  // namespace

void add_cached_attention(std::vector<OperatorType>& types) {
  constexpr auto kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  for (const auto cache : {kFloat, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8}) {
    types.push_back({"CachedAttention",
                     {{kFloat},
                      {kFloat},
                      {kFloat},
                      {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64},
                      {cache},
                      {cache},
                      {kFloat, true},
                      {kFloat, true}},
                     {{kFloat}, {cache}, {cache}, {kFloat, true}, {kFloat, true}},
                     {{kQuery}, {kPastKey}, {kPastValue}, {kPastKeyScale}, {kPastValueScale}},
                     [](const NodeInfo& info) { return std::unique_ptr<NodeKernel>(new CachedAttention(info)); }});
  }
}

}  // namespace edge
