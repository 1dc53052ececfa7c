// edge::CachedAttention for ONNX Runtime.
#include "../native/ort_op.h"

namespace edge {
namespace {

enum Input : size_t { kQuery, kKey, kValue, kPastLength, kPastKey, kPastValue, kPastKeyScale, kPastValueScale };

class CachedAttention : public NodeKernel {
 public:
  explicit CachedAttention(const NodeInfo& info) : kernels_(*info.settings().kernels) {
    args_.scale = info.number("scale");
    args_.window = info.integer("window");
    if (args_.window < 0) {
      refuse("The attribute window of CachedAttention", "at least 0", std::to_string(args_.window),
             "Export the model again.");
    }
    scaled_ = info.has_input(kPastKeyScale);
    if (scaled_ != info.has_input(kPastValueScale)) {
      refuse("The scales of CachedAttention", "both or none", "one", "Export the model again.");
    }
  }

  void compute(const NodeRun& run) override {
    CachedAttentionArgs args = args_;
    const Tensor query = run.input(kQuery), past_key = run.input(kPastKey), past_value = run.input(kPastValue);
    read_sizes(query, past_key, args);
    for (const size_t i : {kKey, kValue}) {
      run.input(i).expect(i == kKey ? "key" : "value", {args.batch, args.length, args.kv_heads * args.head_dim});
    }
    past_value.expect("past_value", {args.batch, args.kv_heads, args.capacity, args.head_dim});
    run.input(kPastLength).expect("past_length", {args.batch});
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
  void read_sizes(const Tensor& query, const Tensor& past_key, CachedAttentionArgs& args) const {
    query.expect("query", {-1, -1, -1});
    past_key.expect("past_key", {query.dims[0], -1, -1, -1});
    args.batch = query.dims[0];
    args.length = query.dims[1];
    args.kv_heads = past_key.dims[1];
    args.capacity = past_key.dims[2];
    args.head_dim = past_key.dims[3];
    args.cache_type = type_of(past_key);
    const int64_t key_width = args.kv_heads * args.head_dim;
    if (key_width <= 0 || query.dims[2] % key_width != 0) {
      refuse("The last axis of query", "a multiple of " + std::to_string(key_width), query.shape(),
             "Export the model again.");
    }
    args.heads = query.dims[2] / args.head_dim;
    if (scaled_ != (args.cache_type == Type::kInt8)) {
      refuse("The scales of CachedAttention", scaled_ ? "an int8 cache" : "past_key_scale and past_value_scale",
             scaled_ ? "a float cache" : "none", "Export the model again.");
    }
  }

  static void add_scales(const NodeRun& run, CachedAttentionArgs& args) {
    const Tensor key = run.input(kPastKeyScale), value = run.input(kPastValueScale);
    key.expect("past_key_scale", {args.batch, args.kv_heads, args.capacity});
    value.expect("past_value_scale", {args.batch, args.kv_heads, args.capacity});
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
