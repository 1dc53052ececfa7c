// getCreators and setLoggerFinder, by which TensorRT loads the operators' plugins.
#include <dlfcn.h>

#include "trt_log.h"
#include "trt_plugin.h"

namespace edge::trt {
namespace {

// The version of the library that an object's virtual functions belong to; 0 where it does not tell.
int32_t version_of_owner(const void* object) {
  Dl_info library;
  if (dladdr(*static_cast<const void* const*>(object), &library) == 0) return 0;
  void* const handle = dlopen(library.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
  if (handle == nullptr) return 0;
  const auto version = reinterpret_cast<int32_t (*)()>(dlsym(handle, "getInferLibVersion"));
  const int32_t found = version != nullptr ? version() : 0;
  dlclose(handle);
  return found;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) nv::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  static Creator creators[] = {Creator(mamba2_mixer()), Creator(moe()), Creator(cached_attention()),
                               Creator(qlinear())};
  static nv::IPluginCreatorInterface* const addresses[] = {&creators[0], &creators[1], &creators[2], &creators[3]};
  count = static_cast<int32_t>(std::size(addresses));
  return addresses;
}

// Called before the creators are asked for. It is TensorRT's own object, so that its library tells the version.
extern "C" __attribute__((visibility("default"))) void setLoggerFinder(void* finder) {
  use_logger_finder(finder, finder != nullptr ? version_of_owner(finder) : 0);
}

}  // namespace edge::trt
