// TensorRT plugins in C++: what an operator's trt.cc declares, and what its kernel is handed.
#pragma once

#include <array>
#include <memory>
#include <type_traits>
#include <vector>

#include "stream.h"
#include "tensor.h"
#include "trt_attributes.h"
#include "types.h"

namespace edge::trt {

struct Tensor : Shaped {
  nv::DataType type{};
};

// The type of an activation, a state or a cache.
Type type_of(const Tensor& tensor);

// A node's tensors. While an engine is built they have no data, and their sizes are the profile's largest.
struct Call {
  static constexpr size_t kMaxInputs = 9, kMaxOutputs = 5;
  std::array<Tensor, kMaxInputs> inputs;
  std::array<void*, kMaxOutputs> outputs{};
};

// The types that an input may have; or, with `like`, only that of an earlier input.
struct Port {
  const char* name;
  std::vector<nv::DataType> types;
  int like = -1;
};

// A node of the graph, which its operator's trt.cc makes from the attributes. All clones of its plugin share it.
class Node {
 public:
  Node(std::vector<Port> its_inputs, std::vector<ShapeRule> its_outputs)
      : inputs(std::move(its_inputs)), outputs(std::move(its_outputs)) {}
  virtual ~Node() = default;

  const std::vector<Port> inputs;
  const std::vector<ShapeRule> outputs;

  // Why the kernel cannot do it, or nullptr. Throws for shapes that contradict each other.
  virtual const char* unsupported(const Call& call) const = 0;
  virtual size_t workspace(const Call& call) const = 0;  // bytes
  // arrivals: native/arrivals.h, or null.
  virtual void run(const Call& call, void* workspace, uint32_t* arrivals, Stream stream) const = 0;
};

// A node of an operator whose cuda.h declares these three functions; the last one's parameters are those of Node::run,
// with or without arrivals.
template <class Args, const char* (*unsupported_of)(const Args&), size_t (*workspace_of)(const Args&), auto run_of>
class KernelNode : public Node {
 public:
  using Node::Node;

  const char* unsupported(const Call& call) const final { return unsupported_of(arguments(call)); }
  size_t workspace(const Call& call) const final { return workspace_of(arguments(call)); }
  void run(const Call& call, void* workspace, uint32_t* arrivals, Stream stream) const final {
    if constexpr (std::is_invocable_v<decltype(run_of), const Args&, void*, uint32_t*, Stream>) {
      run_of(arguments(call), workspace, arrivals, stream);
    } else {
      run_of(arguments(call), workspace, stream);
    }
  }

 protected:
  // Allocates nothing. Refuses shapes that contradict each other.
  virtual Args arguments(const Call& call) const = 0;
};

struct OperatorType {
  const char* name;
  Schema schema;
  std::unique_ptr<Node> (*create)(const Attributes& attributes);
};

// The operators, each in its folder's trt.cc.
OperatorType mamba2_mixer();
OperatorType moe();
OperatorType cached_attention();
OperatorType qlinear();

// Makes the plugins of one operator.
class Creator final : public nv::IPluginCreatorV3One {
 public:
  explicit Creator(OperatorType type);

  nv::IPluginV3* createPlugin(const char* name, const nv::PluginFieldCollection* fields,
                              nv::TensorRTPhase phase) noexcept override;
  const nv::PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }
  const char* getPluginName() const noexcept override { return type_.name; }
  const char* getPluginVersion() const noexcept override { return "1"; }
  const char* getPluginNamespace() const noexcept override { return ""; }

 private:
  const OperatorType type_;
  std::vector<nv::PluginField> fields_;
  nv::PluginFieldCollection collection_;
};

// The element types of activations, and of parameters that stay in float32.
inline const std::vector<nv::DataType> kFloats{nv::DataType::kFLOAT, nv::DataType::kHALF, nv::DataType::kBF16};
inline const std::vector<nv::DataType> kFloat32{nv::DataType::kFLOAT};

}  // namespace edge::trt
