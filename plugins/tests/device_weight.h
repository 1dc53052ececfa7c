// NumPy's weights on the device as the kernels for products take them.
#pragma once

#include <optional>

#include "../edge_plugins/native/weight.h"
#include "device_array.h"

namespace edge::test {

using Scales = std::optional<Floats>;

// A weight (in, out) or (matrices, in, out): float32, float16, bfloat16 (or uint16), int8, or int4 values of a byte
// each. int4 is packed two to a byte along all of it, as ONNX does.
cuda::Weight upload_weight(Device& device, const py::array& weight, const Scales& scales, int64_t block_size, int bits);

}  // namespace edge::test
