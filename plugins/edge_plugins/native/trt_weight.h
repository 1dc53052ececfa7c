// Weights as TensorRT hands them to a plugin: floats as in ONNX, int8 and int4 as int32 constants of the same bytes.
//
// TensorRT's own int8 and int4 constants are made for its quantisation layers. So the last axis of a quantised weight
// is out / 4 or out / 8 here, and the node's attribute weight_bits says which.
#pragma once

#include <string>
#include <vector>

#include "trt_plugin.h"
#include "weight.h"

namespace edge::trt {

// How a node's weights are stored: its attributes weight_bits (8, 4, or 0 for floats) and block_size.
class WeightStorage {
 public:
  explicit WeightStorage(const Attributes& attributes)
      : bits_(attributes.integer("weight_bits")), block_(attributes.integer("block_size")) {
    const bool known = bits_ == 0 || bits_ == 4 || bits_ == 8;
    if (!known) refuse("The attribute weight_bits", "8, 4 or, for floats, 0", std::to_string(bits_), kTodo);
    if ((bits_ > 0) != (block_ > 0)) {
      refuse("The attribute block_size", bits_ > 0 ? "at least 1" : "0 beside floats", std::to_string(block_), kTodo);
    }
  }

  bool scaled() const { return bits_ > 0; }

  std::vector<nv::DataType> types() const { return scaled() ? std::vector{nv::DataType::kINT32} : kFloats; }

  // One matrix: values (in, out) and, if scaled, scales (in / block, out).
  cuda::Weight matrix(const char* name, const Tensor& values, const Tensor& scales) const {
    values.expect(name, {-1, -1});
    const cuda::Weight weight = make(values, scales, values.dims[0], values.dims[1]);
    if (scaled()) scales.expect("scales", {weight.in / block_, weight.out});
    return weight;
  }

  // Several: values (matrices, in, out) and, if scaled, scales (matrices, in / block, out).
  cuda::Weight matrices(const char* name, const Tensor& values, const Tensor& scales, int64_t count) const {
    values.expect(name, {count, -1, -1});
    const cuda::Weight weight = make(values, scales, values.dims[1], values.dims[2]);
    if (scaled()) scales.expect("scales", {count, weight.in / block_, weight.out});
    return weight;
  }

 private:
  static constexpr const char* kTodo = "Build the engine again with edge-export.";

  cuda::Weight make(const Tensor& values, const Tensor& scales, int64_t in, int64_t last) const {
    return {format_of(values),       in, scaled() ? last * (32 / bits_) : last, block_, values.data,
            scales.as<const float>()};
  }

  cuda::WeightFormat format_of(const Tensor& values) const {
    if (scaled()) return bits_ == 8 ? cuda::WeightFormat::kInt8 : cuda::WeightFormat::kInt4;
    switch (type_of(values)) {
      case Type::kFloat16:
        return cuda::WeightFormat::kFloat16;
      case Type::kBfloat16:
        return cuda::WeightFormat::kBfloat16;
      default:
        return cuda::WeightFormat::kFloat32;
    }
  }

  const int64_t bits_;
  const int64_t block_;
};

}  // namespace edge::trt
