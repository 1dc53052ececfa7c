// ONNX Runtime's C API: its own header where the build found one, else our declaration of what we use.
#pragma once

#ifdef EDGE_OFFICIAL_ORT_HEADER
#include <onnxruntime_c_api.h>
#else
#include "ort_slice.h"
namespace edge {
using namespace ort_slice;
}
#endif

namespace edge {

// The oldest version that has all we use (ParallelFor, shape inference); any ONNX Runtime from 1.17 on offers it.
constexpr uint32_t kOrtApiVersion = 17;

}  // namespace edge
