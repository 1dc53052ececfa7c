// edge::MoE on a GPU. Few slots: routing, up, down with combining. Many: routing, sorting, up, down, combining.
#include <algorithm>

#include "../native/weight_products.h"
#include "../native/workspace.h"
#include "cuda.h"
#include "routing.cuh"

namespace edge::cuda {
namespace {

int64_t slots_of(const MoeArgs& args) { return args.tokens * args.top_k; }

// Whether many slots are multiplied in tiles. A tile of a gated weight takes columns of both halves.
bool has_tiles(const MoeArgs& args) {
  const bool halves_fit = args.activation != Activation::kSiluGated || args.intermediate % 32 == 0;
  return halves_fit && fits_tensor_cores(args.up, args.type) && fits_tensor_cores(args.down, args.type);
}

bool in_tiles(const MoeArgs& args) { return slots_of(args) > kFewSlots && has_tiles(args); }

// ---- The workspace ----

Routes take_routes(const MoeArgs& args, Workspace& workspace) {
  const int64_t slots = slots_of(args);
  return {static_cast<int>(slots),        workspace.take<int32_t>(slots),
          workspace.take<float>(slots),   workspace.take<int32_t>(args.experts + 1),
          workspace.take<int32_t>(slots), workspace.take<int32_t>(slots)};
}

PartialSums take_sums(const MoeArgs& args, const Weight& weight, int64_t slots, Workspace& workspace) {
  PartialSums sums{nullptr, slices_of(weight, args.type, static_cast<int>(args.top_k)), static_cast<int>(slots),
                   static_cast<int>(weight.out)};
  sums.sums = workspace.take<float>(sums.slices * slots * weight.out);
  return sums;
}

struct FewBuffers {
  PartialSums risen, fallen;
};

FewBuffers take_few(const MoeArgs& args, int64_t slots, Workspace& workspace) {
  return {take_sums(args, args.up, slots, workspace), take_sums(args, args.down, slots, workspace)};
}

struct TileBuffers {
  uint16_t* active;  // (slots, intermediate)
  uint16_t* fallen;  // (slots, width)
};

TileBuffers take_tiles(const MoeArgs& args, Workspace& workspace) {
  return {workspace.take<uint16_t>(slots_of(args) * args.intermediate),
          workspace.take<uint16_t>(slots_of(args) * args.width)};
}

// ---- The steps ----

void route(const MoeArgs& args, const Routes& routes, Stream stream) {
  const Routing routing{static_cast<int>(args.tokens),
                        static_cast<int>(args.experts),
                        static_cast<int>(args.top_k),
                        static_cast<int>(args.n_group),
                        static_cast<int>(args.topk_group),
                        args.norm_topk_prob,
                        args.scoring,
                        args.routed_scaling_factor,
                        args.router_logits,
                        args.correction_bias,
                        routes};
  const auto blocks = [](int64_t warps) { return static_cast<unsigned>((warps + kRouteWarps - 1) / kRouteWarps); };
  if (routes.slots <= kFewSlots) {
    launch(route_and_sort, dim3(1), kRouteWarps * kWarp, kRouteWarps * sizeof(RoutingScratch), stream, routing);
    return;
  }
  launch(route_tokens, dim3(blocks(args.tokens)), kRouteWarps * kWarp, kRouteWarps * sizeof(RoutingScratch), stream,
         routing);
  launch(sort_slots, dim3(blocks(args.experts)), kRouteWarps * kWarp, 0, stream, routing);
}

}  // namespace

const char* moe_unsupported(const MoeArgs& args) {
  const int64_t gates = args.activation == Activation::kSiluGated ? 2 : 1;
  if (args.experts < 1 || args.experts > kMostExperts) return "the number of experts is not 1 to 512";
  if (args.n_group < 1 || args.experts % args.n_group != 0) return "n_group does not divide the number of experts";
  if (args.topk_group < 1 || args.topk_group > args.n_group) return "topk_group is not 1 to n_group";
  if (args.top_k < 1 || args.top_k > kMostTopK) return "top_k is not 1 to 32";
  if (args.top_k > args.experts / args.n_group * args.topk_group)
    return "top_k exceeds the experts of topk_group groups";
  if (args.up.in != args.width || args.up.out != gates * args.intermediate || args.down.in != args.intermediate ||
      args.down.out != args.width)
    return "the weights' sizes contradict each other";
  if (slots_of(args) > kMostRows) return "tokens times top_k exceed 262144";
  if (const char* reason = unsupported(args.up, args.type)) return reason;
  return unsupported(args.down, args.type);
}

size_t moe_workspace(const MoeArgs& args) {
  const int64_t slots = slots_of(args);
  Workspace workspace(nullptr);
  take_routes(args, workspace);
  const size_t routes = workspace.used();
  take_few(args, in_tiles(args) ? std::min<int64_t>(slots, kFewSlots) : slots, workspace);
  const size_t few = workspace.used();
  if (!in_tiles(args)) return few;
  Workspace tiles(nullptr);
  take_tiles(args, tiles);
  return std::max(few, routes + tiles.used());
}

void moe(const MoeArgs& args, void* workspace, uint32_t* arrivals, Stream stream) {
  if (const char* reason = moe_unsupported(args)) throw std::invalid_argument(std::string("moe: ") + reason);
  if (args.tokens == 0) return;
  Workspace memory(workspace);
  const Routes routes = take_routes(args, memory);
  route(args, routes, stream);
  const RowGroups groups{routes.first, static_cast<int>(args.experts), routes.slots};
  const Inputs inputs{args.type, args.x, routes.token};
  const Combination combination{static_cast<int>(args.tokens), static_cast<int>(args.top_k),
                                static_cast<int>(args.width), routes.shares, routes.position};
  if (in_tiles(args)) {
    const TileBuffers buffers = take_tiles(args, memory);
    tile_products(groups, args.up, inputs, args.activation, buffers.active, stream);
    tile_products(groups, args.down, {args.type, buffers.active, nullptr}, Activation::kNone, buffers.fallen, stream);
    combine(combination, buffers.fallen, args.type, args.y, stream);
    return;
  }
  const FewBuffers buffers = take_few(args, routes.slots, memory);
  partial_products(groups, args.up, inputs, buffers.risen, stream);
  combined_products(groups, args.down, ActivatedInputs{args.type, args.activation, buffers.risen}, buffers.fallen,
                    combination, args.y, arrivals, stream);
}

}  // namespace edge::cuda
