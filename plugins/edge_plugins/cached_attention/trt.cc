// edge::CachedAttention for TensorRT.
#include "../native/trt_plugin.h"
#include "cuda.h"
#include "shape.h"

namespace edge::trt {
namespace {

using namespace cached_attention;
using cuda::CachedAttentionArgs;

std::vector<Port> ports(bool scaled) {
  std::vector<Port> ports{
      {"query", kFloats},
      {"key", {}, kQuery},
      {"value", {}, kQuery},
      {"past_length", {nv::DataType::kINT64}},
      {"past_key", {nv::DataType::kFLOAT, nv::DataType::kHALF}},
      {"past_value", {}, kPastKey},
  };
  if (!scaled) return ports;
  ports[kPastKey].types = {nv::DataType::kINT8};
  ports.push_back({"past_key_scale", kFloat32});
  ports.push_back({"past_value_scale", kFloat32});
  return ports;
}

std::vector<ShapeRule> rules(bool scaled) {
  std::vector<ShapeRule> rules{{kQuery}, {kPastKey}, {kPastValue}};
  if (scaled) rules.insert(rules.end(), {{kPastKeyScale}, {kPastValueScale}});
  return rules;
}

class CachedAttention final : public KernelNode<CachedAttentionArgs, cuda::cached_attention_unsupported,
                                                cuda::cached_attention_workspace, cuda::cached_attention> {
 public:
  CachedAttention(const Attributes& attributes, bool scaled) : KernelNode(ports(scaled), rules(scaled)) {
    args_.scale = attributes.number("scale");
    args_.window = attributes.integer("window");
    check_window(args_.window);
  }

 private:
  CachedAttentionArgs arguments(const Call& call) const override {
    const auto& in = call.inputs;
    CachedAttentionArgs args = args_;
    read_sizes(in[kQuery], in[kKey], in[kValue], in[kPastLength], in[kPastKey], in[kPastValue], args);
    args.type = type_of(in[kQuery]);
    args.cache_type = type_of(in[kPastKey]);
    args.query = in[kQuery].data;
    args.key = in[kKey].data;
    args.value = in[kValue].data;
    args.past_length = in[kPastLength].as<const int64_t>();
    args.past_key = in[kPastKey].data;
    args.past_value = in[kPastValue].data;
    args.y = call.outputs[0];
    args.present_key = call.outputs[1];
    args.present_value = call.outputs[2];
    if (args.cache_type == Type::kInt8) {
      check_scale_shapes(in[kPastKeyScale], in[kPastValueScale], args);
      args.past_key_scale = in[kPastKeyScale].as<const float>();
      args.past_value_scale = in[kPastValueScale].as<const float>();
      args.present_key_scale = static_cast<float*>(call.outputs[3]);
      args.present_value_scale = static_cast<float*>(call.outputs[4]);
    }
    return args;
  }

  CachedAttentionArgs args_{};
};

}  // namespace

OperatorType cached_attention() {
  using Field = nv::PluginFieldType;
  // TensorRT asks for the number of outputs before it shows any input: so cache_bits, 8, tells that there are scales.
  return {"CachedAttention",
          {{"scale", Field::kFLOAT32}, {"window", Field::kINT64}, {"cache_bits", Field::kINT64, true}},
          [](const Attributes& attributes) {
            const bool scaled = attributes.integer("cache_bits") == 8;
            return std::unique_ptr<Node>(new CachedAttention(attributes, scaled));
          }};
}

}  // namespace edge::trt
