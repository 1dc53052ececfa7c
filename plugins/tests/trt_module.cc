// The TensorRT plugins on NumPy arrays, for tests: made, configured, cloned and run as TensorRT does it.
#include <pybind11/stl.h>

#include "device_array.h"
#include "trt_driver.h"

namespace edge::test {
namespace {

constexpr std::pair<const char*, nv::DataType> kTypes[] = {
    {"float32", nv::DataType::kFLOAT}, {"float16", nv::DataType::kHALF}, {"bfloat16", nv::DataType::kBF16},
    {"int8", nv::DataType::kINT8},     {"int32", nv::DataType::kINT32},  {"int64", nv::DataType::kINT64},
};

Described described(const py::array& array) {
  const std::string name = dtype_of(array);
  for (const auto& [known, type] : kTypes) {
    if (name == known) return {type, {array.shape(), array.shape() + array.ndim()}};
  }
  throw std::invalid_argument("expected a type that plugins take, found " + name);
}

py::dtype dtype_of(nv::DataType type) {
  for (const auto& [name, known] : kTypes) {
    if (type == known) return py::dtype::from_args(py::module_::import("edge_plugins.operator").attr("dtype_of")(name));
  }
  throw std::invalid_argument("the plugin gives an output a type that it should not have");
}

FieldList fields_of(const py::dict& attributes) {
  FieldList fields;
  for (const auto& [key, value] : attributes) {
    const auto* name = PyUnicode_AsUTF8(key.ptr());
    if (py::isinstance<py::str>(value)) {
      fields.text(name, value.cast<std::string>());
    } else if (py::isinstance<py::float_>(value)) {
      fields.number(name, value.cast<float>());
    } else {
      fields.integer(name, value.cast<int32_t>());
    }
  }
  return fields;
}

// The outputs of one run. An output whose place in `shared` names an input has that input's memory; -1 is none.
std::vector<py::array> run(const std::string& name, const std::vector<py::array>& inputs, const py::dict& attributes,
                           const std::vector<int>& shared) {
  Messages<trt::Versioned> messages(110100);
  const FieldList fields = fields_of(attributes);
  const Driven builders(name, fields.collection());
  std::vector<Described> in;
  for (const py::array& array : inputs) in.push_back(described(array));
  const std::vector<Described> out = builders.outputs(in);
  if (!builders.configure(in)) throw std::invalid_argument(messages.all.back());
  Device device;
  std::vector<void*> from;
  for (const py::array& array : inputs) from.push_back(device.upload(array));
  std::vector<void*> to;
  for (size_t i = 0; i < out.size(); ++i) {
    size_t bytes = static_cast<size_t>(dtype_of(out[i].type).itemsize());
    for (const int64_t size : out[i].dims) bytes *= static_cast<size_t>(size);
    to.push_back(shared[i] < 0 ? device.room(bytes) : from[static_cast<size_t>(shared[i])]);
  }
  const nv::PluginFieldCollection& kept = *builders.runtime().getFieldsToSerialize();
  const Driven engines(name, kept, nv::TensorRTPhase::kRUNTIME);
  void* const workspace = device.room(builders.workspace(in));
  if (!engines.attached().run(in, {from.begin(), from.end()}, to, workspace)) {
    throw std::invalid_argument(messages.all.back());
  }
  synchronize();
  std::vector<py::array> outputs;
  for (size_t i = 0; i < out.size(); ++i) {
    outputs.push_back(device.download(to[i], dtype_of(out[i].type), {out[i].dims.begin(), out[i].dims.end()}));
  }
  return outputs;
}

}  // namespace
}  // namespace edge::test

PYBIND11_MODULE(EDGE_MODULE_NAME, m) {
  using namespace pybind11::literals;
  m.def("run", &edge::test::run, "name"_a, "inputs"_a, "attributes"_a, "shared"_a);
}
