// Compares our declaration of ONNX Runtime's C API with the official header. That it compiles is the test.
#include "../edge_plugins/native/ort_slice.h"

#include <onnxruntime_c_api.h>

#include <cstddef>

#include "alike.h"

namespace {

namespace slice = edge::ort_slice;

using edge::test::alike;

#define SAME(type, member)                                                                           \
  static_assert(offsetof(::type, member) == offsetof(slice::type, member), "the place of " #member); \
  static_assert(alike<decltype(::type::member), decltype(slice::type::member)>, "the signature of " #member)

#define EQUAL(constant) \
  static_assert(static_cast<int>(::constant) == static_cast<int>(slice::constant), "the value of " #constant)

SAME(OrtApiBase, GetApi);
SAME(OrtApiBase, GetVersionString);

SAME(OrtApi, CreateStatus);
SAME(OrtApi, GetErrorMessage);
SAME(OrtApi, CreateCustomOpDomain);
SAME(OrtApi, CustomOpDomain_Add);
SAME(OrtApi, AddCustomOpDomain);
SAME(OrtApi, GetTensorMutableData);
SAME(OrtApi, CreateTensorTypeAndShapeInfo);
SAME(OrtApi, SetTensorElementType);
SAME(OrtApi, SetDimensions);
SAME(OrtApi, GetTensorElementType);
SAME(OrtApi, GetDimensionsCount);
SAME(OrtApi, GetDimensions);
SAME(OrtApi, GetSymbolicDimensions);
SAME(OrtApi, GetTensorTypeAndShape);
SAME(OrtApi, KernelInfoGetAttribute_float);
SAME(OrtApi, KernelInfoGetAttribute_int64);
SAME(OrtApi, KernelInfoGetAttribute_string);
SAME(OrtApi, KernelContext_GetInputCount);
SAME(OrtApi, KernelContext_GetOutputCount);
SAME(OrtApi, KernelContext_GetInput);
SAME(OrtApi, KernelContext_GetOutput);
SAME(OrtApi, ReleaseStatus);
SAME(OrtApi, ReleaseTensorTypeAndShapeInfo);
SAME(OrtApi, ReleaseCustomOpDomain);
SAME(OrtApi, KernelInfo_GetInputCount);
SAME(OrtApi, KernelInfo_GetInputName);
SAME(OrtApi, HasSessionConfigEntry);
SAME(OrtApi, GetSessionConfigEntry);
SAME(OrtApi, KernelInfo_GetNodeName);
SAME(OrtApi, KernelInfo_GetLogger);
SAME(OrtApi, Logger_LogMessage);
SAME(OrtApi, KernelInfoGetConstantInput_tensor);
SAME(OrtApi, ShapeInferContext_GetInputCount);
SAME(OrtApi, ShapeInferContext_GetInputTypeShape);
SAME(OrtApi, ShapeInferContext_SetOutputTypeShape);
SAME(OrtApi, SetSymbolicDimensions);
SAME(OrtApi, KernelContext_ParallelFor);

SAME(OrtCustomOp, CreateKernel);
SAME(OrtCustomOp, GetName);
SAME(OrtCustomOp, GetExecutionProviderType);
SAME(OrtCustomOp, GetInputType);
SAME(OrtCustomOp, GetInputTypeCount);
SAME(OrtCustomOp, GetOutputType);
SAME(OrtCustomOp, GetOutputTypeCount);
SAME(OrtCustomOp, KernelCompute);
SAME(OrtCustomOp, KernelDestroy);
SAME(OrtCustomOp, GetInputCharacteristic);
SAME(OrtCustomOp, GetOutputCharacteristic);
SAME(OrtCustomOp, GetInputMemoryType);
SAME(OrtCustomOp, GetVariadicInputMinArity);
SAME(OrtCustomOp, GetVariadicInputHomogeneity);
SAME(OrtCustomOp, GetVariadicOutputMinArity);
SAME(OrtCustomOp, GetVariadicOutputHomogeneity);
SAME(OrtCustomOp, CreateKernelV2);
SAME(OrtCustomOp, KernelComputeV2);
SAME(OrtCustomOp, InferOutputShapeFn);
SAME(OrtCustomOp, GetStartVersion);
SAME(OrtCustomOp, GetEndVersion);

EQUAL(ORT_FAIL);
EQUAL(ORT_INVALID_ARGUMENT);
EQUAL(ORT_LOGGING_LEVEL_INFO);
EQUAL(ORT_LOGGING_LEVEL_WARNING);
EQUAL(ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED);
EQUAL(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
EQUAL(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8);
EQUAL(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
EQUAL(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16);
EQUAL(ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16);
EQUAL(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT4);
EQUAL(INPUT_OUTPUT_REQUIRED);
EQUAL(INPUT_OUTPUT_OPTIONAL);
EQUAL(OrtMemTypeDefault);

}  // namespace
