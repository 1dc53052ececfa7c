#include "device_weight.h"

namespace edge::test {
namespace {

const void* upload_int4(Device& device, const py::array& weight) {
  const py::array dense = py::array::ensure(weight, py::array::c_style);
  const auto* values = static_cast<const uint8_t*>(dense.data());
  py::array_t<uint8_t> bytes((dense.size() + 1) / 2);
  std::memset(bytes.mutable_data(), 0, static_cast<size_t>(bytes.size()));
  for (py::ssize_t i = 0; i < dense.size(); ++i) {
    bytes.mutable_data()[i / 2] |= static_cast<uint8_t>((values[i] & 15) << (i % 2 * 4));
  }
  return device.upload(bytes);
}

cuda::WeightFormat format_of(const py::array& weight, int bits) {
  switch (type_of(weight, "weight")) {
    case Type::kFloat32:
      return cuda::WeightFormat::kFloat32;
    case Type::kFloat16:
      return cuda::WeightFormat::kFloat16;
    case Type::kBfloat16:
      return cuda::WeightFormat::kBfloat16;
    case Type::kInt8:
      break;
  }
  return bits == 4 ? cuda::WeightFormat::kInt4 : cuda::WeightFormat::kInt8;
}

}  // namespace

cuda::Weight upload_weight(Device& device, const py::array& weight, const Scales& scales, int64_t block_size,
                           int bits) {
  const py::ssize_t axes = weight.ndim();
  if (axes != 2 && axes != 3) expect(weight, "weight", {-1, -1});
  cuda::Weight result{
      format_of(weight, bits), weight.shape(axes - 2), weight.shape(axes - 1), block_size, nullptr, nullptr};
  if (scales.has_value() != cuda::is_integer(result.format))
    throw std::invalid_argument("scales: expected with integers and only with them.");
  if (scales && (block_size < 1 || scales->size() != weight.size() / block_size))
    throw std::invalid_argument("scales: expected one for each block of each output.");
  result.values = result.format == cuda::WeightFormat::kInt4 ? upload_int4(device, weight) : device.upload(weight);
  if (scales) result.scales = device.upload<float>(*scales);
  return result;
}

}  // namespace edge::test
