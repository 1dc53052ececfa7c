// The TensorRT plugins driven through their interfaces: what they accept and say, what an engine keeps of them, who
// owns what, and whether a run stays inside its tensors. The kernels are those on the model of a GPU; what they compute
// is tested elsewhere.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "trt_driver.h"

namespace {

using namespace edge;
using namespace edge::test;
using nv::DataType;

int passed = 0, failed = 0;

void check(bool fine, const std::string& what) {
  ++(fine ? passed : failed);
  if (!fine) std::fprintf(stderr, "failed: %s\n", what.c_str());
}

// One node of an operator.
struct Example {
  std::string name;
  FieldList fields;
  std::vector<Described> inputs;
  std::vector<Described> outputs;
  std::vector<int> in_place;  // of every output, the input whose memory it shares, or -1
};

Example mamba2_mixer(int64_t batch, int64_t length) {
  constexpr auto kFloat = DataType::kFLOAT;
  Example example{"Mamba2Mixer", {}, {}, {}, {-1, 7, 8}};
  example.fields.integer("groups", 2).integer("conv_dim", 128).number("eps", 1e-5f);
  example.fields.number("dt_min", 0).number("dt_max", 3e38f);
  example.inputs = {{DataType::kHALF, {batch, length, 196}},
                    {kFloat, {128, 4}},
                    {kFloat, {128}},
                    {kFloat, {4}},
                    {kFloat, {4}},
                    {kFloat, {4}},
                    {kFloat, {64}},
                    {kFloat, {batch, 128, 3}},
                    {DataType::kBF16, {batch, 4, 16, 16}}};
  example.outputs = {{DataType::kHALF, {batch, length, 64}}, example.inputs[7], example.inputs[8]};
  return example;
}

Example cached_attention(int64_t batch, int64_t length, bool int8) {
  Example example{"CachedAttention", {}, {}, {}, {-1, 4, 5}};
  example.fields.number("scale", 0.25f).integer("window", 0).integer("cache_bits", int8 ? 8 : 0);
  const Described cache{int8 ? DataType::kINT8 : DataType::kHALF, {batch, 2, 64, 16}};
  example.inputs = {{DataType::kBF16, {batch, length, 64}},
                    {DataType::kBF16, {batch, length, 32}},
                    {DataType::kBF16, {batch, length, 32}},
                    {DataType::kINT64, {batch}},
                    cache,
                    cache};
  example.outputs = {example.inputs[0], cache, cache};
  if (int8) {
    const Described scales{DataType::kFLOAT, {batch, 2, 64}};
    example.inputs.insert(example.inputs.end(), {scales, scales});
    example.outputs.insert(example.outputs.end(), {scales, scales});
    example.in_place = {-1, 4, 5, 6, 7};
  }
  return example;
}

Example moe(int64_t batch, int64_t length) {
  Example example{"MoE", {}, {}, {}, {-1}};
  example.fields.integer("top_k", 2).integer("n_group", 1).integer("topk_group", 1).integer("norm_topk_prob", 1);
  example.fields.number("routed_scaling_factor", 2.5f).text("activation", "relu2");
  example.fields.integer("block_size", 32).integer("weight_bits", 4);
  example.inputs = {
      {DataType::kHALF, {batch, length, 64}}, {DataType::kFLOAT, {batch, length, 8}}, {DataType::kFLOAT, {8}},
      {DataType::kINT32, {8, 64, 96 / 8}},    {DataType::kINT32, {8, 96, 64 / 8}},    {DataType::kFLOAT, {8, 2, 96}},
      {DataType::kFLOAT, {8, 3, 64}}};
  example.outputs = {example.inputs[0]};
  return example;
}

Example qlinear(int64_t batch, int64_t length) {
  Example example{"QLinear", {}, {}, {}, {-1}};
  example.fields.integer("block_size", 32).integer("weight_bits", 8);
  example.inputs = {
      {DataType::kFLOAT, {batch, length, 64}}, {DataType::kINT32, {64, 48 / 4}}, {DataType::kFLOAT, {2, 48}}};
  example.outputs = {{DataType::kFLOAT, {batch, length, 48}}};
  return example;
}

std::deque<Example> examples(int64_t batch, int64_t length) {
  std::deque<Example> all;
  all.push_back(mamba2_mixer(batch, length));
  all.push_back(cached_attention(batch, length, false));
  all.push_back(cached_attention(batch, length, true));
  all.push_back(moe(batch, length));
  all.push_back(qlinear(batch, length));
  return all;
}

Driven made(const Example& example) { return Driven(example.name, example.fields.collection()); }

bool same(const std::vector<Described>& a, const std::vector<Described>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const Described& left, const Described& right) {
    return left.type == right.type && left.dims == right.dims;
  });
}

void test_shapes_and_types(const Example& example) {
  const Driven plugin = made(example);
  check(plugin.core().getPluginName() == example.name, "the name of " + example.name);
  check(same(plugin.outputs(example.inputs), example.outputs), "the outputs of " + example.name);
}

// Every tensor as the graph has it is supported; no other format, and no type that no port has.
void test_formats(const Example& example, Messages<trt::Versioned>& messages) {
  const Driven plugin = made(example);
  std::vector<Described> all = example.inputs;
  all.insert(all.end(), example.outputs.begin(), example.outputs.end());
  const auto tensors = ranges_of(all);
  messages.all.clear();
  for (size_t i = 0; i < tensors.size(); ++i) {
    auto changed = tensors;
    check(plugin.supports(i, changed), example.name + " supports tensor " + std::to_string(i));
    changed[i].desc.format = static_cast<nv::TensorFormat>(1);
    check(!plugin.supports(i, changed), example.name + " refuses another format of tensor " + std::to_string(i));
    check(messages.all.size() == i, "formats go without saying");
    changed[i].desc.format = nv::TensorFormat::kLINEAR;
    changed[i].desc.type = static_cast<DataType>(4);  // kBOOL
    check(!plugin.supports(i, changed) && !plugin.clone().supports(i, changed), example.name + " refuses bools");
    check(messages.all.size() == i + 1, "a type's refusal is said once");
  }
  check(messages.all[0].find("[edge plugins] " + example.name + " 'its node': The type of ") == 0, messages.all[0]);
}

void test_configuration(const Example& example, Messages<trt::Versioned>& messages) {
  const Driven plugin = made(example);
  messages.all.clear();
  check(plugin.configure(example.inputs), "configuring " + example.name);
  check(messages.all.empty(), "nothing to say of " + example.name);
  for (size_t i = 0; i < example.inputs.size(); ++i) {
    auto wrong = example.inputs;
    wrong[i].dims.back() += 1;
    if (example.name == "CachedAttention" && (i == 3 || i > 5)) continue;  // then the others are wrong
    messages.all.clear();
    check(!plugin.configure(wrong), example.name + " refuses a wrong input " + std::to_string(i));
    check(messages.all.size() == 1 && messages.all[0].find("expected") != std::string::npos, "it says why");
  }
  check(plugin.workspace(example.inputs) == plugin.clone().workspace(example.inputs), "the workspace of a clone");
  messages.all.clear();
  auto too_few = example.inputs;
  too_few.pop_back();
  bool refused = false;
  try {
    plugin.outputs(too_few);
  } catch (const std::invalid_argument&) {
    refused = true;
  }
  check(refused && messages.all.size() == 1, "a missing input of " + example.name);
}

void test_workspace_grows() {
  const auto small = examples(1, 1), large = examples(3, 40);
  for (size_t i = 0; i < small.size(); ++i) {
    check(made(small[i]).workspace(small[i].inputs) <= made(large[i]).workspace(large[i].inputs),
          "the workspace of " + small[i].name);
  }
}

std::string text_of(const nv::PluginFieldCollection& fields) {
  std::string text;
  for (int32_t i = 0; i < fields.nbFields; ++i) {
    const nv::PluginField& field = fields.fields[i];
    const size_t size = field.type == nv::PluginFieldType::kINT64  ? 8
                        : field.type == nv::PluginFieldType::kCHAR ? 1
                                                                   : 4;
    text += field.name;
    text += '=' + std::to_string(static_cast<int>(field.type)) + ':';
    text.append(static_cast<const char*>(field.data), size * static_cast<size_t>(field.length));
  }
  return text;
}

// An engine keeps the fields and makes the plugin anew of them.
void test_serialization(const Example& example, Messages<trt::Versioned>& messages) {
  constexpr auto kRuntime = nv::TensorRTPhase::kRUNTIME;
  const Driven plugin = made(example);
  const nv::PluginFieldCollection& kept = *plugin.runtime().getFieldsToSerialize();
  const Driven again(example.name, kept, kRuntime);
  check(text_of(*again.runtime().getFieldsToSerialize()) == text_of(kept), "what is kept of " + example.name);
  check(again.workspace(example.inputs) == plugin.workspace(example.inputs), "the workspace in an engine");
  messages.all.clear();
  const nv::PluginFieldCollection unversioned = example.fields.collection();
  check(creator_of(example.name).createPlugin("its node", &unversioned, kRuntime) == nullptr, "an unknown format");
  check(messages.all.size() == 1 && messages.all[0].find("Build the engine") != std::string::npos, "it says why");
}

// Data that ends where it ends, so that a sanitizer sees who goes further.
class Data {
 public:
  explicit Data(const std::vector<Described>& tensors) {
    for (const Described& tensor : tensors) {
      size_t bytes = tensor.type == DataType::kINT64 ? 8 : tensor.type == DataType::kINT8 ? 1 : 2;
      if (tensor.type == DataType::kFLOAT || tensor.type == DataType::kINT32) bytes = 4;
      for (const int64_t size : tensor.dims) bytes *= static_cast<size_t>(size);
      memory_.push_back(allocate(bytes));
    }
  }
  static std::shared_ptr<void> allocate(size_t bytes) {
    std::shared_ptr<void> memory(std::aligned_alloc(16, (bytes + 15) / 16 * 16), std::free);
    std::memset(memory.get(), 0, bytes);
    return memory;
  }
  void* at(size_t i) const { return memory_[i].get(); }
  size_t size() const { return memory_.size(); }

 private:
  std::vector<std::shared_ptr<void>> memory_;
};

bool run(const Driven& plugin, const Example& example) {
  const Data in(example.inputs), out(example.outputs);
  std::vector<const void*> from;
  std::vector<void*> to;
  for (size_t i = 0; i < in.size(); ++i) from.push_back(in.at(i));
  for (size_t i = 0; i < out.size(); ++i) {
    to.push_back(example.in_place[i] < 0 ? out.at(i) : in.at(static_cast<size_t>(example.in_place[i])));
  }
  return plugin.run(example.inputs, from, to, Data::allocate(plugin.workspace(example.inputs)).get());
}

// A plugin outlives the one that it is a clone of, and an engine's the builder's.
void test_runs(const Example& example, Messages<trt::Versioned>& messages) {
  auto builders = std::make_unique<Driven>(made(example));
  auto engines = std::make_unique<Driven>(builders->clone());
  builders.reset();
  const Driven attached = engines->attached();
  engines.reset();
  messages.all.clear();
  check(run(attached, example), "a run of " + example.name);
  check(messages.all.empty(), "nothing to say of a run");
  auto wrong = example.inputs;
  wrong.back().dims.back() += 1;
  const auto in = descs_of(wrong), out = descs_of(example.outputs);
  const std::vector<const void*> nothing(in.size());
  const std::vector<void*> nowhere(out.size());
  if (example.name == "CachedAttention") return;  // its last input may be any multiple: covered by configuring
  check(attached.runtime().enqueue(in.data(), out.data(), nothing.data(), nowhere.data(), nullptr, nullptr) != 0,
        "a run that cannot be");
  check(messages.all.size() == 1, "it says why");
}

// The message of a creator that makes no plugin.
std::string refusal(const std::string& name, const FieldList& fields) {
  Messages<trt::Unversioned> messages(100300);
  const nv::PluginFieldCollection collection = fields.collection();
  check(creator_of(name).createPlugin("n", &collection, nv::TensorRTPhase::kBUILD) == nullptr, "a refusal");
  return messages.all.size() == 1 ? messages.all[0] : "";
}

void test_attributes() {
  const auto says = [](const std::string& message, const std::string& expected) {
    check(message.find(expected) != std::string::npos, "expected '" + expected + "', found '" + message + "'");
  };
  says(refusal("CachedAttention", FieldList().number("scale", 1)),
       "The attribute window: expected an integer, found none");
  says(refusal("CachedAttention", FieldList().number("scale", 1).integer("window", 0).integer("sinks", 4)),
       "The attribute sinks: expected one of scale, window, cache_bits, found it");
  says(refusal("CachedAttention", FieldList().text("scale", "one").integer("window", 0)),
       "The attribute scale: expected a float, found a text");
  says(refusal("QLinear", FieldList().integer("block_size", 32).integer("weight_bits", 5)), "found 5");
  says(refusal("QLinear", FieldList().integer("weight_bits", 8)), "The attribute block_size: expected at least 1");
}

void test_creators() {
  int32_t count = 0;
  nv::IPluginCreatorInterface* const* creators = getCreators(count);
  check(count == 4, "four creators");
  for (int32_t i = 0; i < count; ++i) {
    auto& creator = static_cast<nv::IPluginCreatorV3One&>(*creators[i]);
    check(std::string(creator.getPluginVersion()) == "1" && creator.getPluginNamespace()[0] == '\0', "the version");
    check(creator.getFieldNames()->nbFields >= 2, "the fields");
  }
}

// Without a finder of a known version everything is said on stderr.
void test_unknown_loggers() {
  Messages<trt::Versioned> messages(50200);
  trt::log(trt::Severity::kInfo, "this belongs here");
  check(messages.all.empty(), "a logger of an unknown version");
}

}  // namespace

int main() {
  test_creators();
  test_attributes();
  test_unknown_loggers();
  test_workspace_grows();
  Messages<trt::Versioned> messages(110100);
  for (const Example& example : examples(2, 5)) {
    test_shapes_and_types(example);
    test_formats(example, messages);
    test_configuration(example, messages);
    test_serialization(example, messages);
    test_runs(example, messages);
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
