// The attributes of a MoE node, for ort.cc and trt.cc.
#pragma once

#include <string>

#include "../native/tensor.h"
#include "kernel.h"

namespace edge::moe {

inline Activation activation_of(const std::string& name) {
  if (name == "relu2") return Activation::kRelu2;
  if (name == "gelu") return Activation::kGelu;
  if (name == "silu_gated") return Activation::kSiluGated;
  refuse("The attribute activation of MoE", "relu2, gelu or silu_gated", "'" + name + "'", "Export the model again.");
}

// Graphs of before there was a choice do not name it.
inline Scoring scoring_of(const std::string& name) {
  if (name == "sigmoid" || name.empty()) return Scoring::kSigmoid;
  if (name == "softmax") return Scoring::kSoftmax;
  refuse("The attribute scoring of MoE", "sigmoid or softmax", "'" + name + "'", "Export the model again.");
}

// Refuses attributes that so many experts do not allow.
inline void check_routing(const MoeShape& shape) {
  const auto within = [](const char* name, int64_t value, int64_t highest) {
    if (value >= 1 && value <= highest) return;
    refuse(std::string("The attribute ") + name + " of MoE", "1 to " + std::to_string(highest), std::to_string(value),
           "Export the model again.");
  };
  within("n_group", shape.n_group, shape.experts);
  if (shape.experts % shape.n_group != 0) {
    refuse("The attribute n_group of MoE", "a divisor of " + std::to_string(shape.experts) + " experts",
           std::to_string(shape.n_group), "Export the model again.");
  }
  within("topk_group", shape.topk_group, shape.n_group);
  within("top_k", shape.top_k, shape.experts / shape.n_group * shape.topk_group);
}

// Columns of an expert's first product: gate and value beside each other where it is gated.
inline int64_t risen_width(const MoeShape& shape) {
  return shape.activation == Activation::kSiluGated ? 2 * shape.intermediate : shape.intermediate;
}

// Refuses weights (experts, in, out) that do not follow each other.
inline void check_weights(const MoeShape& shape, int64_t up_out, int64_t down_out, int64_t down_experts) {
  if (up_out == risen_width(shape) && down_out == shape.width && down_experts == shape.experts) return;
  const auto text = [](int64_t count, int64_t in, int64_t out) {
    return "(" + std::to_string(count) + ", " + std::to_string(in) + ", " + std::to_string(out) + ")";
  };
  refuse("The weights of MoE",
         "up (experts, width, intermediate, twice that if gated) and down (experts, intermediate, width)",
         text(shape.experts, shape.width, up_out) + " and " + text(down_experts, shape.intermediate, down_out),
         "Export the model again.");
}

}  // namespace edge::moe
