// Drives a plugin through TensorRT's interfaces alone, as a builder and a runtime do.
#pragma once

#include <deque>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "../edge_plugins/native/trt_api.h"
#include "../edge_plugins/native/trt_log.h"

extern "C" edge::nv::IPluginCreatorInterface* const* getCreators(int32_t& count);

namespace edge::test {

// Keeps what the plugins say, as a logger of TensorRT before 11 (Unversioned) or since.
template <class Base>
class Messages : public trt::LoggerFinder<Base>, public trt::Logger<Base> {
 public:
  explicit Messages(int32_t version) { trt::use_logger_finder(static_cast<trt::LoggerFinder<Base>*>(this), version); }
  ~Messages() override { trt::use_logger_finder(nullptr, 0); }

  void log(trt::Severity, const char* message) noexcept override { all.emplace_back(message); }
  trt::Logger<Base>* findLogger() override { return this; }

  std::vector<std::string> all;
};

// Attributes as TensorRT's parser hands them over.
class FieldList {
 public:
  FieldList() = default;
  FieldList(const FieldList&) = delete;
  FieldList(FieldList&&) = default;
  FieldList& integer(const char* name, int32_t value) {
    return add(name, &integers_.emplace_back(value), nv::PluginFieldType::kINT32, 1);
  }
  FieldList& number(const char* name, float value) {
    return add(name, &numbers_.emplace_back(value), nv::PluginFieldType::kFLOAT32, 1);
  }
  FieldList& text(const char* name, const std::string& value) {
    return add(name, texts_.emplace_back(value).data(), nv::PluginFieldType::kCHAR, static_cast<int32_t>(value.size()));
  }
  nv::PluginFieldCollection collection() const { return {static_cast<int32_t>(fields_.size()), fields_.data()}; }

 private:
  FieldList& add(const char* name, const void* data, nv::PluginFieldType type, int32_t length) {
    fields_.emplace_back(name, data, type, length);
    return *this;
  }

  std::deque<int32_t> integers_;
  std::deque<float> numbers_;
  std::deque<std::string> texts_;
  std::vector<nv::PluginField> fields_;
};

// A tensor without its data.
struct Described {
  nv::DataType type;
  std::vector<int64_t> dims;
};

inline nv::PluginTensorDesc desc_of(const Described& tensor) {
  nv::PluginTensorDesc desc{};
  desc.type = tensor.type;
  desc.dims.nbDims = static_cast<int32_t>(tensor.dims.size());
  std::copy(tensor.dims.begin(), tensor.dims.end(), desc.dims.d);
  return desc;
}

inline std::vector<nv::PluginTensorDesc> descs_of(const std::vector<Described>& tensors) {
  std::vector<nv::PluginTensorDesc> descs;
  for (const Described& tensor : tensors) descs.push_back(desc_of(tensor));
  return descs;
}

// The same as a profile's largest sizes; the graph leaves all of them open.
inline std::vector<nv::DynamicPluginTensorDesc> ranges_of(const std::vector<Described>& tensors) {
  std::vector<nv::DynamicPluginTensorDesc> ranges;
  for (const Described& tensor : tensors) {
    const nv::PluginTensorDesc largest = desc_of(tensor);
    nv::DynamicPluginTensorDesc range{largest, largest.dims, largest.dims, largest.dims};
    std::fill_n(range.desc.dims.d, range.desc.dims.nbDims, -1);
    std::fill_n(range.min.d, range.min.nbDims, 1);
    ranges.push_back(range);
  }
  return ranges;
}

inline nv::IPluginCreatorV3One& creator_of(const std::string& name) {
  int32_t count = 0;
  nv::IPluginCreatorInterface* const* creators = getCreators(count);
  for (int32_t i = 0; i < count; ++i) {
    auto& creator = static_cast<nv::IPluginCreatorV3One&>(*creators[i]);
    if (name == creator.getPluginName()) return creator;
  }
  throw std::out_of_range("no creator " + name);
}

// A plugin with its three interfaces.
class Driven {
 public:
  // Takes the plugin over.
  explicit Driven(nv::IPluginV3* plugin) : plugin_(plugin) {
    if (plugin == nullptr) throw std::invalid_argument("the creator made no plugin");
  }
  Driven(const std::string& name, const nv::PluginFieldCollection& fields,
         nv::TensorRTPhase phase = nv::TensorRTPhase::kBUILD)
      : Driven(creator_of(name).createPlugin("its node", &fields, phase)) {}

  Driven clone() const { return Driven(plugin_->clone()); }
  Driven attached() const { return Driven(runtime().attachToContext(nullptr)); }
  nv::IPluginV3OneCore& core() const { return get<nv::IPluginV3OneCore>(nv::PluginCapabilityType::kCORE); }
  nv::IPluginV3OneBuild& build() const { return get<nv::IPluginV3OneBuild>(nv::PluginCapabilityType::kBUILD); }
  nv::IPluginV3OneRuntime& runtime() const { return get<nv::IPluginV3OneRuntime>(nv::PluginCapabilityType::kRUNTIME); }

  // The outputs that follow from the inputs. Sizes travel as addresses of their places, since a plugin may not look at
  // them. Throws where it refuses.
  std::vector<Described> outputs(const std::vector<Described>& inputs) const {
    const int32_t count = build().getNbOutputs();
    std::vector<nv::DataType> in_types, out_types(static_cast<size_t>(count));
    std::vector<nv::DimsExprs> in_dims, out_dims(static_cast<size_t>(count));
    for (const Described& input : inputs) {
      in_types.push_back(input.type);
      nv::DimsExprs& dims = in_dims.emplace_back();
      dims.nbDims = static_cast<int32_t>(input.dims.size());
      for (size_t i = 0; i < input.dims.size(); ++i) {
        dims.d[i] = reinterpret_cast<const nv::IDimensionExpr*>(&input.dims[i]);
      }
    }
    unsigned char no_builder = 0;
    auto& builder = reinterpret_cast<nv::IExprBuilder&>(no_builder);
    const auto given = static_cast<int32_t>(inputs.size());
    if (build().getOutputDataTypes(out_types.data(), count, in_types.data(), given) != 0 ||
        build().getOutputShapes(in_dims.data(), given, nullptr, 0, out_dims.data(), count, builder) != 0) {
      throw std::invalid_argument("the plugin refused its inputs");
    }
    std::vector<Described> outputs;
    for (size_t i = 0; i < out_types.size(); ++i) {
      Described& output = outputs.emplace_back(Described{out_types[i], {}});
      for (int32_t axis = 0; axis < out_dims[i].nbDims; ++axis) {
        output.dims.push_back(*reinterpret_cast<const int64_t*>(out_dims[i].d[axis]));
      }
    }
    return outputs;
  }

  // Whether the tensor at this position, inputs before outputs, may be as it is.
  bool supports(size_t position, const std::vector<nv::DynamicPluginTensorDesc>& tensors) const {
    const int32_t outputs = build().getNbOutputs();
    return build().supportsFormatCombination(static_cast<int32_t>(position), tensors.data(),
                                             static_cast<int32_t>(tensors.size()) - outputs, outputs);
  }

  bool configure(const std::vector<Described>& inputs) const {
    const auto in = ranges_of(inputs), out = ranges_of(outputs(inputs));
    return build().configurePlugin(in.data(), static_cast<int32_t>(in.size()), out.data(),
                                   static_cast<int32_t>(out.size())) == 0;
  }

  size_t workspace(const std::vector<Described>& inputs) const {
    const auto in = ranges_of(inputs), out = ranges_of(outputs(inputs));
    return build().getWorkspaceSize(in.data(), static_cast<int32_t>(in.size()), out.data(),
                                    static_cast<int32_t>(out.size()));
  }

  // Shapes first, then the kernel, as a runtime does it.
  bool run(const std::vector<Described>& inputs, const std::vector<const void*>& from, const std::vector<void*>& to,
           void* workspace) const {
    const auto in = descs_of(inputs), out = descs_of(outputs(inputs));
    return runtime().onShapeChange(in.data(), static_cast<int32_t>(in.size()), out.data(),
                                   static_cast<int32_t>(out.size())) == 0 &&
           runtime().enqueue(in.data(), out.data(), from.data(), to.data(), workspace, nullptr) == 0;
  }

 private:
  template <class Interface>
  Interface& get(nv::PluginCapabilityType type) const {
    return static_cast<Interface&>(*plugin_->getCapabilityInterface(type));
  }

  std::unique_ptr<nv::IPluginV3> plugin_;
};

}  // namespace edge::test
