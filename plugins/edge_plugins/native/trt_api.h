// TensorRT's plugin interfaces: its own headers where the build found them, else our declaration of what we use.
#pragma once

#ifdef EDGE_OFFICIAL_TRT_HEADER
#include <NvInferRuntime.h>
#else
#include "trt_slice.h"
#endif

namespace edge {

namespace nv = nvinfer1;

}  // namespace edge
