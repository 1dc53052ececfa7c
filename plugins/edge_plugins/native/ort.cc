// RegisterCustomOps, by which ONNX Runtime loads the operators' kernels.
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "ort_op.h"

namespace edge {
namespace {

// A session configuration entry, or `otherwise`.
std::string entry(const OrtApi& api, const OrtSessionOptions* options, const char* key, const char* otherwise) {
  size_t size = 0;
  int has = 0;
  if (OrtStatus* status = api.HasSessionConfigEntry(options, key, &has)) {
    api.ReleaseStatus(status);
    has = 0;
  }
  if (has == 0) return otherwise;
  OrtStatus* status = api.GetSessionConfigEntry(options, key, nullptr, &size);
  std::string value(size, '\0');
  if (status == nullptr) status = api.GetSessionConfigEntry(options, key, value.data(), &size);
  if (status != nullptr) {
    api.ReleaseStatus(status);
    refuse(std::string("The session configuration entry ") + key, "a readable text", "none", "Set it again.");
  }
  value.resize(value.find('\0'));
  return value;
}

void read_settings(const OrtApi& api, const OrtSessionOptions* options, Settings& settings) {
  const std::string exact = entry(api, options, "edge.exact", "0");
  if (exact != "0" && exact != "1") {
    refuse("The session configuration entry edge.exact", "0 or 1", "'" + exact + "'", "Choose one of these.");
  }
  settings.api = &api;
  settings.exact = exact == "1";
  settings.kernels = &choose_kernels(entry(api, options, "edge.isa", "auto"));
  settings.packed_path = entry(api, options, "edge.packed_weights", "");
  settings.packed_key = entry(api, options, "edge.packed_key", "");
  if (!settings.packed_path.empty() && settings.packed_key.empty()) {
    refuse("The session configuration entry edge.packed_key", "a text that only this model's weights have", "none",
           "Set it to a hash of the weights, or leave out edge.packed_weights.");
  }
}

// What one call of RegisterCustomOps made.
struct Registration {
  Settings settings;
  std::vector<std::unique_ptr<RegisteredOperator>> operators;
};

OrtStatus* add_domain(const OrtApi& api, OrtSessionOptions* options, const Registration& registration) {
  OrtCustomOpDomain* domain = nullptr;
  OrtStatus* status = api.CreateCustomOpDomain("edge", &domain);
  for (const auto& registered : registration.operators) {
    if (status == nullptr) status = api.CustomOpDomain_Add(domain, registered.get());
  }
  if (status == nullptr) status = api.AddCustomOpDomain(options, domain);
  if (status != nullptr && domain != nullptr) api.ReleaseCustomOpDomain(domain);
  return status;
}

OrtStatus* register_operators(const OrtApi& api, OrtSessionOptions* options) {
  auto registration = std::make_unique<Registration>();
  read_settings(api, options, registration->settings);
  std::vector<OperatorType> types;
  add_qlinear(types);
  add_moe(types);
  add_mamba2_mixer(types);
  add_cached_attention(types);
  for (OperatorType& type : types) {
    registration->operators.push_back(std::make_unique<RegisteredOperator>(std::move(type), registration->settings));
  }
  OrtStatus* status = add_domain(api, options, *registration);
  // Sessions use it as long as they live, and ONNX Runtime never says when the last one ends: a few kilobytes stay.
  if (status == nullptr) static_cast<void>(registration.release());
  return status;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                               const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(kOrtApiVersion);
  if (api == nullptr) {
    // Without its functions not even a status can be made in this version; version 1 has that one.
    const std::string found = base->GetVersionString();
    return base->GetApi(1)->CreateStatus(
        ORT_FAIL, ("ONNX Runtime: expected 1.17 or newer, found " + found + ". Install a newer one.").c_str());
  }
  try {
    return register_operators(*api, options);
  } catch (const std::exception& error) {
    return api->CreateStatus(ORT_INVALID_ARGUMENT, error.what());
  }
}

}  // namespace edge
