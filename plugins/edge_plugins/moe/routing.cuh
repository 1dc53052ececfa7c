// Which experts each token goes to, and the tokens in the order of their experts.
//
// A slot is one (token, k) pair. Sorting is stable and uses no atomics, so that the same inputs give the same sums.
#pragma once

#include "../native/device.h"
#include "kernel.h"

namespace edge::cuda {

constexpr int kMostExperts = 512;
constexpr int kMostTopK = kWarp;  // lane k keeps the k-th choice

struct Routes {
  int slots;          // tokens * top_k
  int32_t* experts;   // (tokens, top_k)
  float* shares;      // (tokens, top_k): the experts' weights
  int32_t* first;     // (experts + 1): the first of an expert's rows; then the number of rows
  int32_t* token;     // (slots): the token of each row
  int32_t* position;  // (tokens, top_k): each slot's row
};

struct Routing {
  int tokens, experts, top_k, n_group, topk_group;
  bool norm_topk_prob;
  Scoring scoring;
  float routed_scaling_factor;
  const float* logits;  // (tokens, experts)
  const float* bias;    // (experts)
  Routes routes;
};

// A warp's memory for one token.
struct RoutingScratch {
  float scores[kMostExperts];
  float choice[kMostExperts];  // what experts are ranked by
  float ranks[kMostExperts];   // of groups
  uint8_t kept[kMostExperts];  // groups whose experts may be chosen
};

// ---- Choosing ----

// Larger for what ranks higher: by value, then by the lower index. NaN ranks below all numbers, 0 below NaN.
__device__ inline uint64_t ranking(float value, int index) {
  const uint32_t bits = __float_as_uint(value + 0.0f);  // -0 is 0
  const uint32_t ordered = value != value ? 1 : bits ^ (bits >> 31 != 0 ? 0xffffffffu : 0x80000000u);
  return uint64_t{ordered} << 32 | (0xffffffffu - static_cast<uint32_t>(index));
}

__device__ inline int index_of(uint64_t ranking) {
  return static_cast<int>(0xffffffffu - static_cast<uint32_t>(ranking));
}

__device__ inline uint64_t best_of_warp(uint64_t mine) {
  const auto value = static_cast<uint32_t>(mine >> 32);
  const uint32_t best = __reduce_max_sync(kAllLanes, value);
  const uint32_t index = __reduce_max_sync(kAllLanes, value == best ? static_cast<uint32_t>(mine) : 0);
  return uint64_t{best} << 32 | index;
}

// The best of a lane's values, every 32nd of `count`, that rank below `limit` and are kept.
template <class Kept>
__device__ inline uint64_t best_below(uint64_t limit, const float* values, int count, const Kept& kept) {
  uint64_t best = 0;
  for (int i = static_cast<int>(threadIdx.x) % kWarp; i < count; i += kWarp) {
    const uint64_t mine = ranking(values[i], i);
    if (mine < limit && mine > best && kept(i)) best = mine;
  }
  return best;
}

// Calls take(k, index) in all lanes for the `picks` best of `count` values that are kept, best first.
template <class Kept, class Take>
__device__ inline void pick_best(int picks, const float* values, int count, const Kept& kept, const Take& take) {
  uint64_t mine = best_below(~uint64_t{0}, values, count, kept);
  for (int k = 0; k < picks; ++k) {
    const uint64_t best = best_of_warp(mine);
    take(k, index_of(best));
    if (mine == best) mine = best_below(best, values, count, kept);  // only the lane that had it looks again
  }
}

// One token's scores, by a warp.
__device__ inline void score_experts(const Routing& r, const float* logits, float* scores) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if (r.scoring == Scoring::kSigmoid) {
    for (int e = lane; e < r.experts; e += kWarp) scores[e] = 1.0f / (1.0f + expf(-logits[e]));
    return;
  }
  float highest = -INFINITY, total = 0;
  for (int e = lane; e < r.experts; e += kWarp) highest = fmaxf(highest, logits[e]);
  for (int mask = kWarp / 2; mask > 0; mask /= 2) highest = fmaxf(highest, __shfl_xor_sync(kAllLanes, highest, mask));
  for (int e = lane; e < r.experts; e += kWarp) total += scores[e] = expf(logits[e] - highest);
  total = warp_sum(total);
  for (int e = lane; e < r.experts; e += kWarp) scores[e] /= total;
}

// Ranks each group by the sum of its two best and keeps the topk_group best groups.
__device__ inline void keep_groups(const Routing& r, RoutingScratch& scratch) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, size = r.experts / r.n_group;
  for (int group = lane; group < r.n_group; group += kWarp) {
    uint64_t best = 0, second = 0;
    for (int e = group * size; e < (group + 1) * size; ++e) {
      const uint64_t mine = ranking(scratch.choice[e], e);
      second = max(second, min(best, mine));
      best = max(best, mine);
    }
    const float first = scratch.choice[index_of(best)];
    scratch.ranks[group] = size > 1 ? first + scratch.choice[index_of(second)] : first;
    scratch.kept[group] = 0;
  }
  __syncwarp();
  const auto any = [](int) { return true; };
  pick_best(r.topk_group, scratch.ranks, r.n_group, any, [&](int, int group) {
    if (lane == 0) scratch.kept[group] = 1;
  });
  __syncwarp();
}

// One token's experts and their shares, by a warp.
__device__ inline void route_token(const Routing& r, int token, RoutingScratch& scratch) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, size = r.experts / r.n_group;
  const float* logits = r.logits + static_cast<int64_t>(token) * r.experts;
  score_experts(r, logits, scratch.scores);
  for (int e = lane; e < r.experts; e += kWarp) scratch.choice[e] = scratch.scores[e] + r.bias[e];
  __syncwarp();
  const bool all = r.topk_group == r.n_group;
  if (!all) keep_groups(r, scratch);
  int my_expert = 0;
  float my_score = 0, total = 0;
  const auto kept = [&](int e) { return all || scratch.kept[e / size] != 0; };
  pick_best(r.top_k, scratch.choice, r.experts, kept, [&](int k, int expert) {
    const float score = scratch.scores[expert];
    total += score;
    if (lane == k) my_expert = expert, my_score = score;
  });
  if (lane < r.top_k) {
    const int slot = token * r.top_k + lane;
    r.routes.experts[slot] = my_expert;
    r.routes.shares[slot] = my_score * (r.routed_scaling_factor / (r.norm_topk_prob ? total + 1e-20f : 1.0f));
  }
  __syncwarp();  // the scratch may be used again
}

// ---- Sorting ----

constexpr int kLooks = 8;  // slots that a lane looks at together

// Calls see(slot, expert or -1 behind the last) kLooks slots of a lane at a time, lanes side by side.
template <class See>
__device__ inline void for_each_slot(const Routes& routes, const See& see) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int base = 0; base < routes.slots; base += kLooks * kWarp) {
    int experts[kLooks];
    EDGE_UNROLL
    for (int i = 0; i < kLooks; ++i) {
      const int slot = base + i * kWarp + lane;
      experts[i] = slot < routes.slots ? routes.experts[slot] : -1;
    }
    EDGE_UNROLL
    for (int i = 0; i < kLooks; ++i) see(base + i * kWarp + lane, experts[i]);
  }
}

// Finds one expert's rows, by a warp: counts the slots of lower experts, then numbers its own in their order.
__device__ inline void sort_expert(const Routing& r, int expert) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  int row = 0;
  for_each_slot(r.routes, [&](int, int e) { row += e >= 0 && e < expert ? 1 : 0; });
  row = warp_sum(row);
  if (lane == 0) r.routes.first[expert] = row;
  if (lane == 0 && expert == 0) r.routes.first[r.experts] = r.routes.slots;
  for_each_slot(r.routes, [&](int slot, int e) {
    const unsigned same = __ballot_sync(kAllLanes, e == expert);
    if (e == expert) {
      const int mine = row + __popc(same & ((1u << lane) - 1));
      r.routes.token[mine] = slot / r.top_k;
      r.routes.position[slot] = mine;
    }
    row += __popc(same);
  });
}

// The same for all experts by a block, when there are few slots: their experts stand in shared memory.
__device__ inline void sort_few(const Routing& r, const int* experts) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  for (int expert = thread; expert <= r.experts; expert += threads) {
    int lower = 0;
    for (int i = 0; i < r.routes.slots; ++i) lower += experts[i] < expert ? 1 : 0;
    r.routes.first[expert] = lower;
  }
  for (int slot = thread; slot < r.routes.slots; slot += threads) {
    int row = 0;
    for (int i = 0; i < r.routes.slots; ++i) {
      row += experts[i] < experts[slot] || (experts[i] == experts[slot] && i < slot) ? 1 : 0;
    }
    r.routes.token[row] = slot / r.top_k;
    r.routes.position[slot] = row;
  }
}

// ---- Kernels ----

constexpr int kRouteWarps = 4;
constexpr int kFewSlots = 64;

// A warp for each token.
__global__ void __launch_bounds__(kRouteWarps* kWarp) route_tokens(Routing r) {
  EDGE_SHARED(memory);
  const int warp = static_cast<int>(threadIdx.x) / kWarp, token = static_cast<int>(blockIdx.x) * kRouteWarps + warp;
  if (token < r.tokens) route_token(r, token, reinterpret_cast<RoutingScratch*>(memory)[warp]);
}

// A warp for each expert.
__global__ void __launch_bounds__(kRouteWarps* kWarp) sort_slots(Routing r) {
  const int expert = static_cast<int>(blockIdx.x) * kRouteWarps + static_cast<int>(threadIdx.x) / kWarp;
  if (expert < r.experts) sort_expert(r, expert);
}

// Both in one block, for at most kFewSlots: another launch takes longer than this.
__global__ void __launch_bounds__(kRouteWarps* kWarp) route_and_sort(Routing r) {
  EDGE_SHARED(memory);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp;
  auto& scratch = reinterpret_cast<RoutingScratch*>(memory)[warp];
  for (int token = warp; token < r.tokens; token += kRouteWarps) route_token(r, token, scratch);
  __syncthreads();
  auto* experts = reinterpret_cast<int*>(memory);  // in the scratch's place
  if (thread < r.routes.slots) experts[thread] = r.routes.experts[thread];
  __syncthreads();
  sort_few(r, experts);
}

static_assert(kFewSlots <= kRouteWarps * kWarp && kFewSlots * sizeof(int) <= sizeof(RoutingScratch));

}  // namespace edge::cuda
