// Compares our declaration of TensorRT's plugin interfaces with an official header: constants and records as it
// compiles, and the places of virtual functions as it runs.
#define EDGE_TRT_NAMESPACE trt_slice
#include "../edge_plugins/native/trt_slice.h"
// After it, since it declares another namespace.
#include <NvInferRuntime.h>

#include <cstddef>
#include <cstdio>
#include <cstring>

#include "../edge_plugins/native/trt_log.h"
#include "alike.h"

namespace {

using edge::test::alike;

int passed = 0, failed = 0;

void check(bool fine, const char* what) {
  ++(fine ? passed : failed);
  if (!fine) std::fprintf(stderr, "failed: %s\n", what);
}

// The place of a virtual function in its class's table: a pointer to it holds 1 + the offset (Itanium C++ ABI, 2.3), on
// Arm 64 the offset beside 2 * adjustment + 1 (ABI for the Arm 64-bit architecture, 3.2.1).
template <class F>
ptrdiff_t slot(F function) {
  ptrdiff_t words[2];
  static_assert(sizeof words == sizeof function);
  std::memcpy(words, &function, sizeof words);
#if defined(__aarch64__)
  return words[0] / static_cast<ptrdiff_t>(sizeof(void*));
#else
  return (words[0] - 1) / static_cast<ptrdiff_t>(sizeof(void*));
#endif
}

template <class Official, class Ours>
void same_function(Official official, Ours ours, const char* what) {
  static_assert(alike<Official, Ours>, "the signature of a virtual function");
  check(slot(official) == slot(ours), what);
}

#define FUNCTION(type, function) \
  same_function(&nvinfer1::type::function, &trt_slice::type::function, #type "::" #function)

#define SIZE(type) static_assert(sizeof(nvinfer1::type) == sizeof(trt_slice::type), "the size of " #type)

#define MEMBER(type, member)                                                                                     \
  static_assert(offsetof(nvinfer1::type, member) == offsetof(trt_slice::type, member), "the place of " #member); \
  static_assert(sizeof(nvinfer1::type::member) == sizeof(trt_slice::type::member), "the size of " #member)

#define EQUAL(type, constant)                                                                                \
  static_assert(static_cast<int>(nvinfer1::type::constant) == static_cast<int>(trt_slice::type::constant) && \
                    sizeof(nvinfer1::type) == sizeof(trt_slice::type),                                       \
                #type "::" #constant)

EQUAL(DataType, kFLOAT);
EQUAL(DataType, kHALF);
EQUAL(DataType, kINT8);
EQUAL(DataType, kINT32);
EQUAL(DataType, kBF16);
EQUAL(DataType, kINT64);
EQUAL(TensorFormat, kLINEAR);
EQUAL(PluginFieldType, kFLOAT32);
EQUAL(PluginFieldType, kINT32);
EQUAL(PluginFieldType, kCHAR);
EQUAL(PluginFieldType, kUNKNOWN);
EQUAL(PluginFieldType, kINT64);
EQUAL(TensorRTPhase, kBUILD);
EQUAL(TensorRTPhase, kRUNTIME);
EQUAL(PluginCapabilityType, kCORE);
EQUAL(PluginCapabilityType, kBUILD);
EQUAL(PluginCapabilityType, kRUNTIME);
EQUAL(APILanguage, kCPP);
EQUAL(Dims, MAX_DIMS);

SIZE(Dims);
MEMBER(Dims, nbDims);
MEMBER(Dims, d);
SIZE(PluginTensorDesc);
MEMBER(PluginTensorDesc, dims);
MEMBER(PluginTensorDesc, type);
MEMBER(PluginTensorDesc, format);
MEMBER(PluginTensorDesc, scale);
SIZE(DynamicPluginTensorDesc);
MEMBER(DynamicPluginTensorDesc, desc);
MEMBER(DynamicPluginTensorDesc, min);
MEMBER(DynamicPluginTensorDesc, max);
MEMBER(DynamicPluginTensorDesc, opt);
SIZE(PluginField);
MEMBER(PluginField, name);
MEMBER(PluginField, data);
MEMBER(PluginField, type);
MEMBER(PluginField, length);
SIZE(PluginFieldCollection);
MEMBER(PluginFieldCollection, nbFields);
MEMBER(PluginFieldCollection, fields);
SIZE(InterfaceInfo);
MEMBER(InterfaceInfo, kind);
MEMBER(InterfaceInfo, major);
MEMBER(InterfaceInfo, minor);
SIZE(DimsExprs);
MEMBER(DimsExprs, nbDims);
MEMBER(DimsExprs, d);
SIZE(IPluginV3);
SIZE(IPluginV3OneCore);
SIZE(IPluginV3OneBuild);
SIZE(IPluginV3OneRuntime);
SIZE(IPluginCreatorV3One);

void compare_functions() {
  FUNCTION(IVersionedInterface, getAPILanguage);
  FUNCTION(IVersionedInterface, getInterfaceInfo);
  FUNCTION(IPluginV3, getInterfaceInfo);
  FUNCTION(IPluginV3, getCapabilityInterface);
  FUNCTION(IPluginV3, clone);
  FUNCTION(IPluginV3OneCore, getInterfaceInfo);
  FUNCTION(IPluginV3OneCore, getPluginName);
  FUNCTION(IPluginV3OneCore, getPluginVersion);
  FUNCTION(IPluginV3OneCore, getPluginNamespace);
  FUNCTION(IPluginV3OneBuild, getInterfaceInfo);
  FUNCTION(IPluginV3OneBuild, configurePlugin);
  FUNCTION(IPluginV3OneBuild, getOutputDataTypes);
  FUNCTION(IPluginV3OneBuild, getOutputShapes);
  FUNCTION(IPluginV3OneBuild, supportsFormatCombination);
  FUNCTION(IPluginV3OneBuild, getNbOutputs);
  FUNCTION(IPluginV3OneBuild, getWorkspaceSize);
  FUNCTION(IPluginV3OneBuild, getValidTactics);
  FUNCTION(IPluginV3OneBuild, getNbTactics);
  FUNCTION(IPluginV3OneBuild, getTimingCacheID);
  FUNCTION(IPluginV3OneBuild, getFormatCombinationLimit);
  FUNCTION(IPluginV3OneBuild, getMetadataString);
  FUNCTION(IPluginV3OneRuntime, getInterfaceInfo);
  FUNCTION(IPluginV3OneRuntime, setTactic);
  FUNCTION(IPluginV3OneRuntime, onShapeChange);
  FUNCTION(IPluginV3OneRuntime, enqueue);
  FUNCTION(IPluginV3OneRuntime, attachToContext);
  FUNCTION(IPluginV3OneRuntime, getFieldsToSerialize);
  FUNCTION(IPluginCreatorV3One, getInterfaceInfo);
  FUNCTION(IPluginCreatorV3One, createPlugin);
  FUNCTION(IPluginCreatorV3One, getFieldNames);
  FUNCTION(IPluginCreatorV3One, getPluginName);
  FUNCTION(IPluginCreatorV3One, getPluginVersion);
  FUNCTION(IPluginCreatorV3One, getPluginNamespace);
}

#if NV_TENSORRT_MAJOR >= 11
using Base = edge::trt::Versioned;
#else
using Base = edge::trt::Unversioned;
#endif

void compare_loggers() {
  check(slot(&nvinfer1::ILogger::log) == slot(&edge::trt::Logger<Base>::log), "ILogger::log");
  check(slot(&nvinfer1::ILoggerFinder::findLogger) == slot(&edge::trt::LoggerFinder<Base>::findLogger),
        "ILoggerFinder::findLogger");
  static_assert(alike<decltype(&nvinfer1::ILogger::log), decltype(&edge::trt::Logger<Base>::log)>);
  using Official = nvinfer1::ILogger::Severity;
  static_assert(static_cast<int>(Official::kERROR) == static_cast<int>(edge::trt::Severity::kError));
  static_assert(static_cast<int>(Official::kWARNING) == static_cast<int>(edge::trt::Severity::kWarning));
}

// TensorRT refuses a plugin whose interfaces say that they are others. What says so reads no member: no object is
// needed, which saves implementing each interface twice.
#define KIND(type)                                                                                        \
  {                                                                                                       \
    alignas(std::max_align_t) unsigned char nothing[sizeof(nvinfer1::type)] = {};                         \
    const auto official = reinterpret_cast<nvinfer1::type*>(nothing)->nvinfer1::type::getInterfaceInfo(); \
    const auto ours = reinterpret_cast<trt_slice::type*>(nothing)->trt_slice::type::getInterfaceInfo();   \
    check(std::strcmp(official.kind, ours.kind) == 0, #type "'s kind");                                   \
    check(official.major == ours.major && official.minor == ours.minor, #type "'s version");              \
  }

void compare_kinds() {
  KIND(IPluginV3);
  KIND(IPluginV3OneCore);
  KIND(IPluginV3OneBuild);
  KIND(IPluginV3OneRuntime);
  KIND(IPluginCreatorV3One);
}

}  // namespace

int main() {
  compare_functions();
  compare_loggers();
  compare_kinds();
  std::printf("TensorRT %d.%d\n%d passed, %d failed\n", NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR, passed, failed);
  return failed == 0 ? 0 : 1;
}
