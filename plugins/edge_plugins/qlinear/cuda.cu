// edge::QLinear on a GPU: a product of one matrix.
#include <stdexcept>

#include "../native/weight_products.h"
#include "../native/workspace.h"
#include "cuda.h"

namespace edge::cuda {
namespace {

constexpr int64_t kFewTokens = 8;

bool in_tiles(const QLinearArgs& args) { return args.tokens > kFewTokens && fits_tensor_cores(args.weight, args.type); }

PartialSums take_sums(const QLinearArgs& args, int64_t tokens, Workspace& workspace) {
  PartialSums sums{nullptr, slices_of(args.weight, args.type, 1), static_cast<int>(tokens),
                   static_cast<int>(args.weight.out)};
  sums.sums = workspace.take<float>(sums.slices * tokens * args.weight.out);
  return sums;
}

}  // namespace

const char* qlinear_unsupported(const QLinearArgs& args) {
  if (args.tokens > kMostRows) return "more than 262144 tokens";
  return unsupported(args.weight, args.type);
}

size_t qlinear_workspace(const QLinearArgs& args) {
  Workspace workspace(nullptr);
  take_sums(args, in_tiles(args) ? kFewTokens : args.tokens, workspace);
  return workspace.used();
}

void qlinear(const QLinearArgs& args, void* workspace, uint32_t* arrivals, Stream stream) {
  if (const char* reason = qlinear_unsupported(args)) throw std::invalid_argument(std::string("qlinear: ") + reason);
  if (args.tokens == 0) return;
  const int tokens = static_cast<int>(args.tokens);
  const RowGroups groups{nullptr, 1, tokens};
  const Inputs inputs{args.type, args.x, nullptr};
  if (in_tiles(args)) return tile_products(groups, args.weight, inputs, Activation::kNone, args.y, stream);
  Workspace memory(workspace);
  const PartialSums sums = take_sums(args, tokens, memory);
  const Combination combination{tokens, 1, sums.out, nullptr, nullptr};
  combined_products(groups, args.weight, inputs, sums, combination, args.y, arrivals, stream);
}

}  // namespace edge::cuda
