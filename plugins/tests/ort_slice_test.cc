// Compares our declaration of ONNX Runtime's C API with the official header. That it compiles is the test.
#include "../edge_plugins/native/ort_slice.h"

#include <onnxruntime_c_api.h>

#include <cstddef>
#include <type_traits>

namespace {

namespace slice = edge::ort_slice;

// The same to a caller: equal numbers, enumerations, pointers to things alike, functions of alike things.
template <class A, class B>
struct Alike : std::bool_constant<(std::is_enum_v<A> && std::is_enum_v<B>) ||
                                  (std::is_class_v<A> && std::is_class_v<B>) || std::is_same_v<A, B>> {};

template <class A, class B>
struct Alike<A*, B*> : std::bool_constant<std::is_const_v<A> == std::is_const_v<B> &&
                                          Alike<std::remove_cv_t<A>, std::remove_cv_t<B>>::value> {};

template <class Official, class Ours>
struct Functions : std::false_type {};

template <class A, class... As, class B, class... Bs>
struct Functions<A(As...), B(Bs...)> {
  static constexpr bool value = [] {
    if constexpr (sizeof...(As) == sizeof...(Bs)) {
      return Alike<A, B>::value && (... && Alike<As, Bs>::value);
    } else {
      return false;
    }
  }();
};

template <class F>
struct Plain;
template <class A, class... As>
struct Plain<A (*)(As...)> {
  using type = A(As...);
};
template <class A, class... As>
struct Plain<A (*)(As...) noexcept> {
  using type = A(As...);
};

template <class Official, class Ours>
constexpr bool alike = Functions<typename Plain<Official>::type, typename Plain<Ours>::type>::value;

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
