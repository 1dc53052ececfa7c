// edge::MoE on the CPU: tokens are sorted by expert, so that each chosen expert's weights are read once.
#include <algorithm>
#include <cmath>

#include "../native/packed_product.h"
#include "kernel.h"

namespace edge::EDGE_ISA {
namespace {

// ---------------------------------------------------------------------------------------------- routing

// The expert of the largest choice that is not taken yet; the first of equals. NaN never wins over a number.
int64_t best_left(const float* choice, const uint8_t* taken, int64_t experts) {
  int64_t best = -1;
  for (int64_t e = 0; e < experts; ++e) {
    if (!taken[e] && (best < 0 || choice[e] > choice[best] || (choice[best] != choice[best] && choice[e] == choice[e])))
      best = e;
  }
  return best;
}

// Marks as taken the experts of all groups but the topk_group best; a group's rank is the sum of its two best choices.
void drop_groups(const MoeArgs& a, const float* choice, uint8_t* taken) {
  Frame frame;
  const int64_t size = a.experts / a.n_group;
  auto* rank = frame.take<float>(a.n_group);
  auto* kept = frame.take<uint8_t>(a.n_group);
  std::fill_n(kept, a.n_group, uint8_t{0});
  for (int64_t g = 0; g < a.n_group; ++g) {
    float first = -INFINITY, second = -INFINITY;
    for (const float* c = choice + (g * size); c < choice + ((g + 1) * size); ++c) {
      if (*c > first) {
        second = first;
        first = *c;
      } else if (*c > second) {
        second = *c;
      }
    }
    rank[g] = size > 1 ? first + second : first;
  }
  for (int64_t i = 0; i < a.topk_group; ++i) kept[best_left(rank, kept, a.n_group)] = 1;
  for (int64_t e = 0; e < a.experts; ++e) taken[e] = !kept[e / size];
}

// One token's scores, (experts).
void score(const MoeArgs& a, const float* logits, float* scores) {
  if (a.scoring == Scoring::kSigmoid) {
    for (int64_t e = 0; e < a.experts; ++e) scores[e] = 1.0f / (1.0f + std::exp(-logits[e]));
    return;
  }
  const float highest = *std::max_element(logits, logits + a.experts);
  float total = 0;
  for (int64_t e = 0; e < a.experts; ++e) total += scores[e] = std::exp(logits[e] - highest);
  for (int64_t e = 0; e < a.experts; ++e) scores[e] /= total;
}

// One token's experts and weights, (top_k) each.
void route(const MoeArgs& a, const float* logits, int64_t* experts, float* weights) {
  Frame frame;
  auto* scores = frame.take<float>(a.experts);
  auto* choice = frame.take<float>(a.experts);
  auto* taken = frame.take<uint8_t>(a.experts);
  score(a, logits, scores);
  for (int64_t e = 0; e < a.experts; ++e) choice[e] = scores[e] + a.correction_bias[e];
  std::fill_n(taken, a.experts, uint8_t{0});
  if (a.topk_group < a.n_group) drop_groups(a, choice, taken);
  float total = 0;
  for (int64_t k = 0; k < a.top_k; ++k) {
    experts[k] = best_left(choice, taken, a.experts);
    taken[experts[k]] = 1;
    weights[k] = scores[experts[k]];
    total += weights[k];
  }
  const float factor = a.routed_scaling_factor / (a.norm_topk_prob ? total + 1e-20f : 1.0f);
  for (int64_t k = 0; k < a.top_k; ++k) weights[k] *= factor;
}

// Which tokens go where. A slot is one (token, k) pair; slots of an expert stand together, in the tokens' order.
struct Routes {
  int64_t slots;
  const float* weights;    // (tokens, top_k)
  const int64_t* slot_of;  // (tokens, top_k)
  const int64_t* tokens;   // (slots)
  const int64_t* first;    // (experts + 1): the expert's first slot
  const int64_t* used;     // experts that have slots
  int64_t used_count;
};

Routes make_routes(Frame& frame, const MoeArgs& a, const Parallel& parallel) {
  const int64_t slots = a.tokens * a.top_k;
  auto* experts = frame.take<int64_t>(slots);
  auto* weights = frame.take<float>(slots);
  auto* slot_of = frame.take<int64_t>(slots);
  auto* tokens = frame.take<int64_t>(slots);
  auto* first = frame.take<int64_t>(a.experts + 1);
  auto* next = frame.take<int64_t>(a.experts);
  auto* used = frame.take<int64_t>(a.experts);
  parallel(static_cast<size_t>(a.tokens), [&](size_t t) {
    const int64_t token = static_cast<int64_t>(t);
    route(a, a.router_logits + (token * a.experts), experts + (token * a.top_k), weights + (token * a.top_k));
  });
  std::fill_n(first, a.experts + 1, int64_t{0});
  for (int64_t s = 0; s < slots; ++s) ++first[experts[s] + 1];
  int64_t used_count = 0;
  for (int64_t e = 0; e < a.experts; ++e) {
    if (first[e + 1] > 0) used[used_count++] = e;
    first[e + 1] += first[e];
    next[e] = first[e];
  }
  for (int64_t s = 0; s < slots; ++s) {
    slot_of[s] = next[experts[s]]++;
    tokens[slot_of[s]] = s / a.top_k;
  }
  return {slots, weights, slot_of, tokens, first, used, used_count};
}

// ---------------------------------------------------------------------------------------------- experts

Floats gelu(Floats x) {
  Floats y;
  for (int i = 0; i < kWidth; ++i) y[i] = 0.5f * x[i] * (1.0f + std::erf(x[i] * 0.70710678f));
  return y;
}

Floats activated(Activation activation, Floats x, Floats gated) {
  if (activation == Activation::kGelu) return gelu(x);
  if (activation == Activation::kSiluGated) return silu(x) * gated;
  const Floats positive = at_least(x, 0.0f);
  return positive * positive;
}

// What stands between the two products, from a row of `up`'s width to (intermediate).
void activate(const MoeArgs& a, const float* risen, float* active) {
  const float* gated = a.activation == Activation::kSiluGated ? risen + a.intermediate : risen;
  int64_t i = 0;
  for (; i + kWidth <= a.intermediate; i += kWidth) {
    store(active + i, activated(a.activation, load(risen + i), load(gated + i)));
  }
  float rest[2][kWidth] = {};
  std::copy(risen + i, risen + a.intermediate, rest[0]);
  std::copy(gated + i, gated + a.intermediate, rest[1]);
  store(rest[0], activated(a.activation, load(rest[0]), load(rest[1])));
  std::copy_n(rest[0], a.intermediate - i, active + i);
}

// outputs (slots, out of the experts' matrices): each slot's row times its expert's matrix.
void expert_products(const Routes& routes, const PackedMatrix* weights, const Rows& rows, float* outputs,
                     const Parallel& parallel) {
  const PackedMatrix& any = weights[0];
  const int64_t step = panels_per_task(any), tasks = (any.panels() + step - 1) / step;
  parallel(static_cast<size_t>(routes.used_count * tasks), [&](size_t index) {
    const int64_t expert = routes.used[static_cast<int64_t>(index) / tasks];
    const int64_t slot = routes.first[expert], count = routes.first[expert + 1] - slot;
    const int64_t first = static_cast<int64_t>(index) % tasks * step;
    for (int64_t panel = first; panel < std::min(first + step, any.panels()); ++panel) {
      panel_product(weights[expert], panel, rows.from(slot), count, outputs + (slot * any.out), any.out);
    }
  });
}

int64_t rows_per_expert(const MoeArgs& a) { return a.tokens * a.top_k / a.experts; }

// The rows of x as `up` wants them, one for each slot.
Rows gather(Frame& frame, const MoeArgs& a, const Routes& routes, const Parallel& parallel) {
  const Rounding rounding = rounding_for(a.up[0], a.exact, rows_per_expert(a));
  const RowsBuffer by_token(frame, a.up[0], rounding, a.tokens);
  const RowsBuffer by_slot(frame, a.up[0], rounding, routes.slots);
  if (!by_slot.rounds()) {
    auto* floats = frame.take<float>(routes.slots * a.width);
    for (int64_t s = 0; s < routes.slots; ++s) {
      std::copy_n(a.x + (routes.tokens[s] * a.width), a.width, floats + (s * a.width));
    }
    return by_slot.rows(floats);
  }
  parallel(static_cast<size_t>(a.tokens),
           [&](size_t t) { by_token.fill(static_cast<int64_t>(t), a.x + (static_cast<int64_t>(t) * a.width)); });
  const Rows rounded = by_token.rows(nullptr);
  for (int64_t s = 0; s < routes.slots; ++s) by_slot.copy(s, rounded, routes.tokens[s]);
  return by_slot.rows(nullptr);
}

}  // namespace

void moe(const MoeArgs& args, const Parallel& parallel) {
  if (args.tokens == 0) return;
  Frame frame;
  const Routes routes = make_routes(frame, args, parallel);
  const int64_t up_width = args.up[0].out;
  auto* risen = frame.take<float>(routes.slots * up_width);
  auto* active = frame.take<float>(routes.slots * args.intermediate);
  auto* fallen = frame.take<float>(routes.slots * args.width);
  expert_products(routes, args.up, gather(frame, args, routes, parallel), risen, parallel);
  const Rounding rounding = rounding_for(args.down[0], args.exact, rows_per_expert(args));
  const RowsBuffer buffer(frame, args.down[0], rounding, routes.slots);
  parallel(static_cast<size_t>(routes.slots), [&](size_t index) {
    const int64_t slot = static_cast<int64_t>(index);
    float* row = active + (slot * args.intermediate);
    activate(args, risen + (slot * up_width), row);
    if (buffer.rounds()) buffer.fill(slot, row);
  });
  expert_products(routes, args.down, buffer.rows(active), fallen, parallel);
  parallel(static_cast<size_t>(args.tokens), [&](size_t t) {
    float* y = args.y + (static_cast<int64_t>(t) * args.width);
    std::fill_n(y, args.width, 0.0f);
    for (int64_t k = 0; k < args.top_k; ++k) {
      const int64_t s = (static_cast<int64_t>(t) * args.top_k) + k;
      const float *from = fallen + (routes.slot_of[s] * args.width), weight = routes.weights[s];
      for (int64_t i = 0; i < args.width; ++i) y[i] += weight * from[i];
    }
  });
}

}  // namespace edge::EDGE_ISA
