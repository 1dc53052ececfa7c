#include "trt_plugin.h"

#include <algorithm>
#include <mutex>
#include <set>
#include <string>

#include "arrivals.h"
#include "trt_log.h"

namespace edge::trt {
namespace {

constexpr const char* kExport = "Export the model again.";

std::string type_name(nv::DataType type) {
  switch (type) {
    case nv::DataType::kFLOAT:
      return "float32";
    case nv::DataType::kHALF:
      return "float16";
    case nv::DataType::kBF16:
      return "bfloat16";
    case nv::DataType::kINT8:
      return "int8";
    case nv::DataType::kINT32:
      return "int32";
    case nv::DataType::kINT64:
      return "int64";
    default:
      return "TensorRT's type " + std::to_string(static_cast<int32_t>(type));
  }
}

std::string names_of(const std::vector<nv::DataType>& types) {
  std::string names;
  for (const nv::DataType type : types) names += (names.empty() ? "" : " or ") + type_name(type);
  return names;
}

Tensor tensor_of(const nv::Dims& dims, nv::DataType type) {
  Tensor tensor;
  tensor.rank = static_cast<size_t>(std::max(dims.nbDims, int32_t{0}));
  std::copy(dims.d, dims.d + tensor.rank, tensor.dims.begin());
  tensor.type = type;
  return tensor;
}

int32_t last_axis(const nv::DimsExprs& shape) {
  if (shape.nbDims < 1) refuse("A tensor's shape", "at least one axis", "none", kExport);
  return shape.nbDims - 1;
}

// What all clones of one node's plugin share.
class Shared {
 public:
  Shared(const OperatorType& type, const char* name, const nv::PluginFieldCollection& fields, nv::TensorRTPhase phase)
      : operator_name(type.name),
        node_name(name),
        attributes(type.schema, fields, phase),
        node(type.create(attributes)) {}

  void say(Severity severity, const std::string& message) const {
    log(severity, operator_name + " '" + node_name + "': " + message);
  }

  // TensorRT asks the same more than once.
  void say_once(Severity severity, const std::string& message) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (said_.insert(message).second) say(severity, message);
  }

  const std::string operator_name;
  const std::string node_name;
  const Attributes attributes;
  const std::unique_ptr<Node> node;

 private:
  mutable std::mutex mutex_;
  mutable std::set<std::string> said_;
};

class Plugin final : public nv::IPluginV3,
                     public nv::IPluginV3OneCore,
                     public nv::IPluginV3OneBuild,
                     public nv::IPluginV3OneRuntime {
 public:
  // arrivals: a context's own; null while an engine is built.
  explicit Plugin(std::shared_ptr<const Shared> shared, std::shared_ptr<uint32_t> arrivals = nullptr)
      : shared_(std::move(shared)), arrivals_(std::move(arrivals)) {}

  nv::IPluginCapability* getCapabilityInterface(nv::PluginCapabilityType type) noexcept override {
    switch (type) {
      case nv::PluginCapabilityType::kCORE:
        return static_cast<nv::IPluginV3OneCore*>(this);
      case nv::PluginCapabilityType::kBUILD:
        return static_cast<nv::IPluginV3OneBuild*>(this);
      case nv::PluginCapabilityType::kRUNTIME:
        return static_cast<nv::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
  }

  nv::IPluginV3* clone() noexcept override { return new (std::nothrow) Plugin(shared_); }
  nv::IPluginV3* attachToContext(nv::IPluginResourceContext*) noexcept override {
    nv::IPluginV3* attached = nullptr;
    guarded([&] { attached = new Plugin(shared_, cuda::make_arrivals()); });
    return attached;
  }

  // ---- Core ----

  const char* getPluginName() const noexcept override { return shared_->operator_name.c_str(); }
  const char* getPluginVersion() const noexcept override { return "1"; }
  const char* getPluginNamespace() const noexcept override { return ""; }

  // ---- Build ----

  int32_t getNbOutputs() const noexcept override { return static_cast<int32_t>(node().outputs.size()); }

  int32_t getOutputDataTypes(nv::DataType* out, int32_t outputs, const nv::DataType* in,
                             int32_t inputs) const noexcept override {
    return guarded([&] {
      check_counts(inputs, outputs);
      std::transform(node().outputs.begin(), node().outputs.end(), out, [&](ShapeRule rule) { return in[rule.like]; });
    });
  }

  int32_t getOutputShapes(const nv::DimsExprs* in, int32_t inputs, const nv::DimsExprs*, int32_t, nv::DimsExprs* out,
                          int32_t outputs, nv::IExprBuilder&) noexcept override {
    return guarded([&] {
      check_counts(inputs, outputs);
      for (const ShapeRule rule : node().outputs) {
        *out = in[rule.like];
        if (rule.last_of >= 0) out->d[last_axis(*out)] = in[rule.last_of].d[last_axis(in[rule.last_of])];
        ++out;
      }
    });
  }

  // That a format is not linear goes without saying: TensorRT tries them all. A type is the graph's.
  bool supportsFormatCombination(int32_t position, const nv::DynamicPluginTensorDesc* tensors, int32_t inputs,
                                 int32_t outputs) noexcept override {
    bool supported = false;
    guarded([&] {
      check_counts(inputs, outputs);
      const size_t index = static_cast<size_t>(position);
      const nv::PluginTensorDesc& found = tensors[index].desc;
      if (found.format != nv::TensorFormat::kLINEAR) return;
      const std::vector<nv::DataType> types = types_of(index, tensors);
      supported = std::find(types.begin(), types.end(), found.type) != types.end();
      if (supported) return;
      shared_->say_once(Severity::kWarning, "The type of " + name_of(index) + ": expected " + names_of(types) +
                                                ", found " + type_name(found.type) + ". " + kExport);
    });
    return supported;
  }

  int32_t configurePlugin(const nv::DynamicPluginTensorDesc* in, int32_t inputs, const nv::DynamicPluginTensorDesc*,
                          int32_t outputs) noexcept override {
    return guarded([&] {
      check_counts(inputs, outputs);
      check_supported(largest(in));
    });
  }

  size_t getWorkspaceSize(const nv::DynamicPluginTensorDesc* in, int32_t inputs, const nv::DynamicPluginTensorDesc*,
                          int32_t outputs) const noexcept override {
    size_t bytes = 0;
    guarded([&] {
      check_counts(inputs, outputs);
      bytes = node().workspace(largest(in));
    });
    return bytes;
  }

  // ---- Runtime ----

  int32_t onShapeChange(const nv::PluginTensorDesc* in, int32_t inputs, const nv::PluginTensorDesc*,
                        int32_t outputs) noexcept override {
    return guarded([&] {
      check_counts(inputs, outputs);
      check_supported(actual(in));
    });
  }

  int32_t enqueue(const nv::PluginTensorDesc* in, const nv::PluginTensorDesc*, const void* const* inputs,
                  void* const* outputs, void* workspace, Stream stream) noexcept override {
    return guarded([&] {
      Call call = actual(in);
      for (size_t i = 0; i < node().inputs.size(); ++i) call.inputs[i].data = const_cast<void*>(inputs[i]);
      std::copy_n(outputs, node().outputs.size(), call.outputs.begin());
      node().run(call, workspace, arrivals_.get(), stream);
    });
  }

  const nv::PluginFieldCollection* getFieldsToSerialize() noexcept override { return shared_->attributes.serialized(); }

 private:
  const Node& node() const { return *shared_->node; }

  // No exception may cross into TensorRT: it becomes a message and a status.
  template <class F>
  int32_t guarded(const F& f) const noexcept {
    try {
      f();
      return 0;
    } catch (const std::exception& error) {
      shared_->say(Severity::kError, error.what());
      return 1;
    }
  }

  void check_counts(int32_t inputs, int32_t outputs) const {
    const auto check = [](const char* what, size_t expected, int32_t found) {
      if (static_cast<size_t>(found) == expected) return;
      refuse(std::string("The number of ") + what, std::to_string(expected), std::to_string(found), kExport);
    };
    check("inputs", node().inputs.size(), inputs);
    check("outputs", node().outputs.size(), outputs);
  }

  void check_supported(const Call& call) const {
    const char* const reason = node().unsupported(call);
    if (reason != nullptr) throw std::invalid_argument(reason);
  }

  // Of an input, or after them an output.
  std::string name_of(size_t index) const {
    const size_t inputs = node().inputs.size();
    return index < inputs ? node().inputs[index].name : "output " + std::to_string(index - inputs);
  }

  // The types that it may have, now that those before it are decided.
  std::vector<nv::DataType> types_of(size_t index, const nv::DynamicPluginTensorDesc* tensors) const {
    const size_t inputs = node().inputs.size();
    const int like = index < inputs ? node().inputs[index].like : static_cast<int>(node().outputs[index - inputs].like);
    return like < 0 ? node().inputs[index].types : std::vector<nv::DataType>{tensors[like].desc.type};
  }

  Call largest(const nv::DynamicPluginTensorDesc* in) const {
    Call call;
    for (size_t i = 0; i < node().inputs.size(); ++i) call.inputs[i] = tensor_of(in[i].max, in[i].desc.type);
    return call;
  }

  Call actual(const nv::PluginTensorDesc* in) const {
    Call call;
    for (size_t i = 0; i < node().inputs.size(); ++i) call.inputs[i] = tensor_of(in[i].dims, in[i].type);
    return call;
  }

  const std::shared_ptr<const Shared> shared_;
  const std::shared_ptr<uint32_t> arrivals_;
};

}  // namespace

Type type_of(const Tensor& tensor) {
  switch (tensor.type) {
    case nv::DataType::kFLOAT:
      return Type::kFloat32;
    case nv::DataType::kHALF:
      return Type::kFloat16;
    case nv::DataType::kBF16:
      return Type::kBfloat16;
    default:
      return Type::kInt8;  // no port lists another one
  }
}

Creator::Creator(OperatorType type) : type_(std::move(type)) {
  for (const Attribute& attribute : type_.schema) fields_.emplace_back(attribute.name, nullptr, attribute.type, 1);
  collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
}

nv::IPluginV3* Creator::createPlugin(const char* name, const nv::PluginFieldCollection* fields,
                                     nv::TensorRTPhase phase) noexcept {
  try {
    return new Plugin(std::make_shared<const Shared>(type_, name, *fields, phase));
  } catch (const std::exception& error) {
    log(Severity::kError, std::string(type_.name) + " '" + name + "': " + error.what());
    return nullptr;
  }
}

}  // namespace edge::trt
