// A node's attributes as TensorRT's plugin fields: read from the graph, written into an engine, read from it again.
#pragma once

#include <deque>
#include <string>
#include <vector>

#include "trt_api.h"

namespace edge::trt {

// An attribute of the operator's schema (op.py): kINT64, kFLOAT32 or kCHAR, which is text.
struct Attribute {
  const char* name;
  nv::PluginFieldType type;
  bool optional = false;  // then 0 or "" where it is absent
};

using Schema = std::vector<Attribute>;

// The values of one node's attributes. Refuses missing and unknown ones and those of another type.
class Attributes {
 public:
  Attributes(const Schema& schema, const nv::PluginFieldCollection& given, nv::TensorRTPhase phase);
  Attributes(const Attributes&) = delete;
  Attributes& operator=(const Attributes&) = delete;

  int64_t integer(const char* name) const { return value(name).integer; }
  float number(const char* name) const { return value(name).number; }
  const std::string& text(const char* name) const { return value(name).text; }

  // What an engine keeps, under the version of this format; it points into this object.
  const nv::PluginFieldCollection* serialized() const { return &collection_; }

 private:
  struct Value {
    Attribute attribute;
    bool given = false;
    int64_t integer = 0;
    float number = 0;
    std::string text{};
  };

  const Value& value(const std::string& name) const;
  void read(const nv::PluginField& field);
  void write();

  std::deque<Value> values_;
  std::vector<nv::PluginField> fields_;
  nv::PluginFieldCollection collection_;
};

}  // namespace edge::trt
