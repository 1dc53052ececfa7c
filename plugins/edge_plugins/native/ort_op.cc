#include "ort_op.h"

#include <algorithm>

namespace edge {
namespace {

// Raises a status of ONNX Runtime as an exception.
void check(const OrtApi& api, OrtStatus* status) {
  if (status == nullptr) return;
  const std::string message = api.GetErrorMessage(status);
  api.ReleaseStatus(status);
  throw std::runtime_error(message);
}

bool succeeded(const OrtApi& api, OrtStatus* status) {
  if (status != nullptr) api.ReleaseStatus(status);
  return status == nullptr;
}

Tensor read(const OrtApi& api, const OrtValue* value) {
  Tensor tensor;
  if (value == nullptr) refuse("An input", "a tensor", "none", "Give the node all of its inputs.");
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(api, api.GetTensorTypeAndShape(value, &info));
  OrtStatus* status = api.GetTensorElementType(info, &tensor.type);
  if (status == nullptr) status = api.GetDimensionsCount(info, &tensor.rank);
  const bool fits = tensor.rank <= Tensor::kMaxRank;
  if (status == nullptr && fits) status = api.GetDimensions(info, tensor.dims.data(), tensor.rank);
  api.ReleaseTensorTypeAndShapeInfo(info);
  check(api, status);
  if (!fits) refuse("An input", "at most 8 axes", std::to_string(tensor.rank), "Reshape it.");
  check(api, api.GetTensorMutableData(const_cast<OrtValue*>(value), &tensor.data));
  return tensor;
}

// No exception may cross into ONNX Runtime: it becomes a status.
template <class F>
OrtStatus* guarded(const OrtApi& api, const F& f) noexcept {
  try {
    f();
    return nullptr;
  } catch (const std::invalid_argument& error) {
    return api.CreateStatus(ORT_INVALID_ARGUMENT, error.what());
  } catch (const std::exception& error) {
    return api.CreateStatus(ORT_FAIL, error.what());
  }
}

}  // namespace

Type type_of(const Tensor& tensor) {
  switch (tensor.type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
      return Type::kFloat32;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
      return Type::kFloat16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16:
      return Type::kBfloat16;
    default:
      return Type::kInt8;  // ONNX Runtime gives a kernel only the types that it declared
  }
}

std::shared_ptr<PackedStore> Settings::store() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::shared_ptr<PackedStore> store = store_.lock();
  if (store == nullptr) store_ = store = std::make_shared<PackedStore>(packed_path, packed_key);
  return store;
}

int64_t NodeInfo::integer(const char* name) const {
  int64_t value = 0;
  check(*settings_.api, settings_.api->KernelInfoGetAttribute_int64(info_, name, &value));
  return value;
}

int64_t NodeInfo::integer(const char* name, int64_t otherwise) const {
  int64_t value = 0;
  const bool found = succeeded(*settings_.api, settings_.api->KernelInfoGetAttribute_int64(info_, name, &value));
  return found ? value : otherwise;
}

float NodeInfo::number(const char* name) const {
  float value = 0;
  check(*settings_.api, settings_.api->KernelInfoGetAttribute_float(info_, name, &value));
  return value;
}

std::string NodeInfo::text(const char* name, const char* otherwise) const {
  size_t size = 0;
  const OrtApi& api = *settings_.api;
  if (!succeeded(api, api.KernelInfoGetAttribute_string(info_, name, nullptr, &size))) return otherwise;
  std::string value(size, '\0');
  check(api, api.KernelInfoGetAttribute_string(info_, name, value.data(), &size));
  value.resize(value.find('\0'));
  return value;
}

bool NodeInfo::has_input(size_t index) const {
  size_t count = 0;
  check(*settings_.api, settings_.api->KernelInfo_GetInputCount(info_, &count));
  return index < count && !input_name(index).empty();
}

std::string NodeInfo::input_name(size_t index) const {
  size_t size = 0;
  const OrtApi& api = *settings_.api;
  check(api, api.KernelInfo_GetInputName(info_, index, nullptr, &size));
  std::string name(size, '\0');
  check(api, api.KernelInfo_GetInputName(info_, index, name.data(), &size));
  name.resize(name.find('\0'));
  return name;
}

std::optional<Tensor> NodeInfo::constant(size_t index) const {
  const OrtValue* value = nullptr;
  int is_constant = 0;
  const OrtApi& api = *settings_.api;
  if (!has_input(index)) return std::nullopt;
  check(api, api.KernelInfoGetConstantInput_tensor(info_, index, &is_constant, &value));
  if (is_constant == 0 || value == nullptr) return std::nullopt;
  return read(api, value);
}

Tensor NodeInfo::weight(size_t index, const char* name) const {
  const std::optional<Tensor> tensor = constant(index);
  if (!tensor) {
    refuse(std::string("The input ") + name, "a constant, which is packed once",
           has_input(index) ? "a computed tensor" : "none",
           "Store it as an initializer of the model, or run the model without this library.");
  }
  return *tensor;
}

PackedStore::Log NodeInfo::log() const {
  const OrtApi& api = *settings_.api;
  const OrtLogger* logger = nullptr;
  check(api, api.KernelInfo_GetLogger(info_, &logger));
  return [&api, logger](bool warning, const std::string& message) {
    const OrtLoggingLevel level = warning ? ORT_LOGGING_LEVEL_WARNING : ORT_LOGGING_LEVEL_INFO;
    succeeded(api, api.Logger_LogMessage(logger, level, message.c_str(), "edge_plugins", 0, "PackedStore"));
  };
}

Tensor NodeRun::input(size_t index) const {
  const OrtValue* value = nullptr;
  check(api_, api_.KernelContext_GetInput(context_, index, &value));
  return read(api_, value);
}

void* NodeRun::data(size_t index) const {
  const OrtValue* value = nullptr;
  void* data = nullptr;
  check(api_, api_.KernelContext_GetInput(context_, index, &value));
  check(api_, api_.GetTensorMutableData(const_cast<OrtValue*>(value), &data));
  return data;
}

void* NodeRun::output(size_t index, const Tensor& like) const {
  OrtValue* value = nullptr;
  void* data = nullptr;
  check(api_, api_.KernelContext_GetOutput(context_, index, like.dims.data(), like.rank, &value));
  check(api_, api_.GetTensorMutableData(value, &data));
  return data;
}

void* NodeRun::output(size_t index, std::initializer_list<int64_t> dims) const {
  Tensor like;
  like.rank = dims.size();
  std::copy(dims.begin(), dims.end(), like.dims.begin());
  return output(index, like);
}

void NodeRun::run_tasks(void* self, Parallel::Task task, size_t count, void* argument) {
  const NodeRun& run = *static_cast<const NodeRun*>(self);
  // As many batches as tasks: a thread that is done takes the next one.
  check(run.api_, run.api_.KernelContext_ParallelFor(run.context_, task, count, count, argument));
}

namespace {

const RegisteredOperator& self(const OrtCustomOp* op) { return *static_cast<const RegisteredOperator*>(op); }

OrtCustomOpInputOutputCharacteristic characteristic(const Port& port) {
  return port.optional ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
}

// What ONNX Runtime holds as a kernel.
struct Handle {
  const OrtApi& api;
  std::unique_ptr<NodeKernel> kernel;
};

OrtStatus* create(const OrtCustomOp* op, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
  const Settings& settings = self(op).settings;
  return guarded(*settings.api, [&] {
    *kernel = new Handle{*settings.api, self(op).type.create(NodeInfo(settings, info))};
  });
}

OrtStatus* compute(void* kernel, OrtKernelContext* context) {
  const Handle& handle = *static_cast<Handle*>(kernel);
  return guarded(handle.api, [&] { handle.kernel->compute(NodeRun(handle.api, context)); });
}

void destroy(void* kernel) { delete static_cast<Handle*>(kernel); }

// A tensor while the graph is loaded: its type, sizes, and names of those that are open.
struct OpenShape {
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  std::vector<int64_t> dims;
  std::vector<const char*> names;

  // ONNX Runtime marks an unknown size by -1 and no name; a shape that holds one cannot be handed on.
  bool known() const {
    for (size_t i = 0; i < dims.size(); ++i) {
      if (dims[i] < 0 && names[i][0] == '\0') return false;
    }
    return !dims.empty();
  }
};

OpenShape open_shape(const OrtApi& api, const OrtShapeInferContext* context, size_t index) {
  OrtTensorTypeAndShapeInfo* info = nullptr;  // the context's
  size_t rank = 0;
  check(api, api.ShapeInferContext_GetInputTypeShape(context, index, &info));
  check(api, api.GetDimensionsCount(info, &rank));
  OpenShape shape{{}, std::vector<int64_t>(rank), std::vector<const char*>(rank, "")};
  check(api, api.GetTensorElementType(info, &shape.type));
  check(api, api.GetDimensions(info, shape.dims.data(), rank));
  check(api, api.GetSymbolicDimensions(info, shape.names.data(), rank));
  return shape;
}

void set_shape(const OrtApi& api, OrtShapeInferContext* context, size_t index, OpenShape shape) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(api, api.CreateTensorTypeAndShapeInfo(&info));
  OrtStatus* status = api.SetTensorElementType(info, shape.type);
  if (status == nullptr) status = api.SetDimensions(info, shape.dims.data(), shape.dims.size());
  if (status == nullptr) status = api.SetSymbolicDimensions(info, shape.names.data(), shape.names.size());
  if (status == nullptr) status = api.ShapeInferContext_SetOutputTypeShape(context, index, info);
  api.ReleaseTensorTypeAndShapeInfo(info);
  check(api, status);
}

// Shapes let ONNX Runtime fuse what follows, and of operators that differ in their types it asks only the first: an
// output has the type of the input that its shape is like. Where one is not known nothing is lost, so nothing here is
// an error.
OrtStatus* infer(const OrtCustomOp* op, OrtShapeInferContext* context) {
  const RegisteredOperator& registered = self(op);
  const OrtApi& api = *registered.settings.api;
  const auto infer_one = [&](size_t index, const ShapeRule& rule) {
    OpenShape shape = open_shape(api, context, rule.like);
    if (!shape.known()) return;
    if (rule.last_of >= 0) {
      const OpenShape other = open_shape(api, context, static_cast<size_t>(rule.last_of));
      if (!other.known()) return;
      shape.dims.back() = other.dims.back();
      shape.names.back() = other.names.back();
    }
    set_shape(api, context, index, shape);
  };
  for (size_t i = 0; i < registered.type.shapes.size(); ++i) {
    OrtStatus* status = guarded(api, [&] { infer_one(i, registered.type.shapes[i]); });
    if (!succeeded(api, status)) break;
  }
  return nullptr;
}

}  // namespace

RegisteredOperator::RegisteredOperator(OperatorType type_, const Settings& settings_)
    : OrtCustomOp{}, type(std::move(type_)), settings(settings_) {
  version = kOrtApiVersion;
  CreateKernelV2 = create;
  KernelComputeV2 = compute;
  KernelDestroy = destroy;
  InferOutputShapeFn = infer;
  GetName = [](const OrtCustomOp* op) { return self(op).type.name; };
  GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };  // the CPU
  GetInputTypeCount = [](const OrtCustomOp* op) { return self(op).type.inputs.size(); };
  GetOutputTypeCount = [](const OrtCustomOp* op) { return self(op).type.outputs.size(); };
  GetInputType = [](const OrtCustomOp* op, size_t i) { return self(op).type.inputs[i].type; };
  GetOutputType = [](const OrtCustomOp* op, size_t i) { return self(op).type.outputs[i].type; };
  GetInputCharacteristic = [](const OrtCustomOp* op, size_t i) { return characteristic(self(op).type.inputs[i]); };
  GetOutputCharacteristic = [](const OrtCustomOp* op, size_t i) { return characteristic(self(op).type.outputs[i]); };
  GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  GetVariadicInputMinArity = GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
  GetVariadicInputHomogeneity = GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
  GetStartVersion = [](const OrtCustomOp*) { return 1; };
}

}  // namespace edge
