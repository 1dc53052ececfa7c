#include "packed_weight.h"

namespace edge {
namespace {

Format format_of(const Tensor& tensor) {
  switch (tensor.type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT4:
      return Format::kInt4;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8:
      return Format::kInt8;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16:
      return Format::kBfloat16;
    default:
      return Format::kFloat32;  // ONNX Runtime gives a kernel only the types that it declared
  }
}

}  // namespace

NodeWeight::NodeWeight(const NodeInfo& info, size_t index, size_t scales, const char* name, int64_t block)
    : store_(info.settings().store()), log_(info.log()) {
  const Tensor weight = info.weight(index, name);
  if (weight.rank != 2 && weight.rank != 3) weight.expect(name, {-1, -1});
  PackedRequest request;
  request.name = info.input_name(index);
  request.shape.format = format_of(weight);
  request.shape.in = weight.dims[weight.rank - 2];
  request.shape.out = weight.dims[weight.rank - 1];
  request.count = weight.rank == 3 ? weight.dims[0] : 1;
  request.weight = weight.data;
  if (request.shape.format == Format::kInt4 || request.shape.format == Format::kInt8) {
    request.shape.block = block;
  }
  if (const char* reason = unpackable(request.shape)) {
    refuse(std::string("The input ") + name, "a matrix that can be packed", weight.shape() + ", and " + reason,
           "Export the model again, or run it without this library.");
  }
  if (request.shape.quantized()) {
    const Tensor factors = info.weight(scales, "scales");
    const int64_t blocks = request.shape.in / block, out = request.shape.out;
    weight.rank == 3 ? factors.expect("scales", {request.count, blocks, out}) : factors.expect("scales", {blocks, out});
    request.scales = factors.as<float>();
  }
  packed_ = store_->get(request, log_);
}

}  // namespace edge
