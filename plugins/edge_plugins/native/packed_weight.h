// A node's packed weight: asked of the session's store as the kernel is made, published at its first run.
#pragma once

#include <memory>

#include "ort_op.h"

namespace edge {

class NodeWeight {
 public:
  // Input `index` (..., in, out) is the weight `name`, input `scales` its scales if it is quantised.
  NodeWeight(const NodeInfo& info, size_t index, size_t scales, const char* name, int64_t block);

  const PackedMatrix* matrices() const { return packed_.matrices.data(); }
  int64_t count() const { return static_cast<int64_t>(packed_.matrices.size()); }
  int64_t in() const { return packed_.matrices[0].in; }
  int64_t out() const { return packed_.matrices[0].out; }
  // All kernels of the session exist when one of them runs.
  void ready() const { store_->publish(log_); }

 private:
  std::shared_ptr<PackedStore> store_;
  PackedStore::Log log_;
  PackedWeight packed_;
};

}  // namespace edge
