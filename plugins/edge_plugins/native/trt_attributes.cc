#include "trt_attributes.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "tensor.h"

namespace edge::trt {
namespace {

// The field that an engine's fields begin with. Another meaning of any field needs another number.
constexpr const char* kFormat = "edge_format_1";
constexpr const char* kExport = "Export the model again.";

// The parser hands integers over as kINT32, whatever we declare; in an engine they are kINT64.
nv::PluginFieldType kind_of(nv::PluginFieldType type) {
  return type == nv::PluginFieldType::kINT32 ? nv::PluginFieldType::kINT64 : type;
}

const char* name_of(nv::PluginFieldType type) {
  switch (kind_of(type)) {
    case nv::PluginFieldType::kINT64:
      return "an integer";
    case nv::PluginFieldType::kFLOAT32:
      return "a float";
    case nv::PluginFieldType::kCHAR:
      return "a text";
    default:
      return "another type";
  }
}

}  // namespace

Attributes::Attributes(const Schema& schema, const nv::PluginFieldCollection& given, nv::TensorRTPhase phase) {
  for (const Attribute& attribute : schema) values_.push_back({attribute});
  const nv::PluginField* const end = given.fields + given.nbFields;
  const auto is_format = [](const nv::PluginField& field) { return std::strcmp(field.name, kFormat) == 0; };
  if (phase == nv::TensorRTPhase::kRUNTIME && std::none_of(given.fields, end, is_format)) {
    refuse("The engine's fields", kFormat, given.nbFields > 0 ? given.fields[0].name : "none",
           "Build the engine with this version of the plugins.");
  }
  std::for_each(given.fields, end, [&](const nv::PluginField& field) {
    if (!is_format(field)) read(field);
  });
  for (const Value& value : values_) {
    if (value.given || value.attribute.optional) continue;
    refuse(std::string("The attribute ") + value.attribute.name, name_of(value.attribute.type), "none", kExport);
  }
  write();
}

void Attributes::read(const nv::PluginField& field) {
  const auto named = [&](const Value& value) { return std::strcmp(value.attribute.name, field.name) == 0; };
  const auto found = std::find_if(values_.begin(), values_.end(), named);
  const std::string what = std::string("The attribute ") + field.name;
  if (found == values_.end()) {
    std::string known;
    for (const Value& value : values_) known += (known.empty() ? "" : ", ") + std::string(value.attribute.name);
    refuse(what, "one of " + known, "it", kExport);
  }
  const nv::PluginFieldType type = found->attribute.type;
  const bool is_text = type == nv::PluginFieldType::kCHAR;
  if (kind_of(field.type) != type || (!is_text && (field.length != 1 || field.data == nullptr))) {
    refuse(what, name_of(type), std::string(name_of(field.type)) + " of length " + std::to_string(field.length),
           kExport);
  }
  found->given = true;
  if (is_text) {
    const char* const text = static_cast<const char*>(field.data);
    found->text.assign(text, std::find(text, text + field.length, '\0'));  // some parsers count the final zero
  } else if (field.type == nv::PluginFieldType::kINT32) {
    found->integer = *static_cast<const int32_t*>(field.data);
  } else if (field.type == nv::PluginFieldType::kINT64) {
    found->integer = *static_cast<const int64_t*>(field.data);
  } else {
    found->number = *static_cast<const float*>(field.data);
  }
}

void Attributes::write() {
  static const int32_t format = 1;
  fields_.emplace_back(kFormat, &format, nv::PluginFieldType::kINT32, 1);
  for (const Value& value : values_) {
    const nv::PluginFieldType type = value.attribute.type;
    const void* data = &value.integer;
    if (type == nv::PluginFieldType::kFLOAT32) data = &value.number;
    const bool is_text = type == nv::PluginFieldType::kCHAR;
    if (is_text) data = value.text.data();
    fields_.emplace_back(value.attribute.name, data, type, is_text ? static_cast<int32_t>(value.text.size()) : 1);
  }
  collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
}

const Attributes::Value& Attributes::value(const std::string& name) const {
  for (const Value& value : values_) {
    if (name == value.attribute.name) return value;
  }
  throw std::logic_error("The schema has no attribute " + name + ".");
}

}  // namespace edge::trt
