// Custom operators of ONNX Runtime in C++: what an operator's ort.cc declares, and what its kernel is handed.
#pragma once

#include <array>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "isa.h"
#include "ort_api.h"
#include "packed_store.h"
#include "tensor.h"

namespace edge {

struct Tensor : Shaped {
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
};

// The state and cache type of a tensor's elements.
Type type_of(const Tensor& tensor);

// What a session was configured with when it registered the library: session configuration entries.
struct Settings {
  const OrtApi* api = nullptr;
  const Kernels* kernels = nullptr;  // edge.isa
  bool exact = false;                // edge.exact
  std::string packed_path;           // edge.packed_weights
  std::string packed_key;            // edge.packed_key

  // The store of packed weights that the living kernels of these settings share.
  std::shared_ptr<PackedStore> store() const;

 private:
  mutable std::mutex mutex_;
  mutable std::weak_ptr<PackedStore> store_;
};

// A node as its kernel is made: attributes, names and constant inputs.
class NodeInfo {
 public:
  NodeInfo(const Settings& settings, const OrtKernelInfo* info) : settings_(settings), info_(info) {}

  const Settings& settings() const { return settings_; }
  int64_t integer(const char* name) const;
  int64_t integer(const char* name, int64_t otherwise) const;
  float number(const char* name) const;
  std::string text(const char* name, const char* otherwise) const;
  bool has_input(size_t index) const;
  std::string input_name(size_t index) const;
  std::optional<Tensor> constant(size_t index) const;   // none if it is computed or absent
  Tensor weight(size_t index, const char* name) const;  // refuses one that is not constant
  PackedStore::Log log() const;

 private:
  const Settings& settings_;
  const OrtKernelInfo* info_;
};

// One run of a node: inputs, outputs and ONNX Runtime's threads.
class NodeRun {
 public:
  NodeRun(const OrtApi& api, OrtKernelContext* context) : api_(api), context_(context) {}

  Tensor input(size_t index) const;
  void* data(size_t index) const;  // of an input whose shape is known
  void* output(size_t index, const Tensor& like) const;
  void* output(size_t index, std::initializer_list<int64_t> dims) const;
  Parallel parallel() const { return {const_cast<NodeRun*>(this), run_tasks}; }

 private:
  static void run_tasks(void* self, Parallel::Task task, size_t count, void* argument);

  const OrtApi& api_;
  OrtKernelContext* context_;
};

// A node's kernel. Compute allocates nothing.
class NodeKernel {
 public:
  virtual ~NodeKernel() = default;
  virtual void compute(const NodeRun& run) = 0;
};

struct Port {
  ONNXTensorElementDataType type;
  bool optional = false;
};

// One operator for one combination of element types.
struct OperatorType {
  const char* name;
  std::vector<Port> inputs;
  std::vector<Port> outputs;
  std::vector<ShapeRule> shapes;  // of the outputs
  std::unique_ptr<NodeKernel> (*create)(const NodeInfo& info);
};

// An operator as ONNX Runtime takes it.
struct RegisteredOperator : OrtCustomOp {
  RegisteredOperator(OperatorType type, const Settings& settings);

  OperatorType type;
  const Settings& settings;
};

// The operators, each in its folder's ort.cc.
void add_qlinear(std::vector<OperatorType>& types);
void add_moe(std::vector<OperatorType>& types);
void add_mamba2_mixer(std::vector<OperatorType>& types);
void add_cached_attention(std::vector<OperatorType>& types);

}  // namespace edge
