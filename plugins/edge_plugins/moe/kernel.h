// edge::MoE: routing and the chosen experts' weighted sum. Meaning and shapes: op.py.
#pragma once

#include "../native/activation.h"
#include "../native/packed.h"
#include "../native/parallel.h"

namespace edge {

// How an expert's logit becomes its score: by itself, or as its share of all experts' exponentials.
enum class Scoring { kSigmoid, kSoftmax };

struct MoeShape {
  int64_t tokens;  // batch * length, may be 0
  int64_t width;
  int64_t experts;
  int64_t intermediate;  // of `down`; `up` has twice as many outputs if gated
  int64_t top_k;
  int64_t n_group;
  int64_t topk_group;
  bool norm_topk_prob;
  Scoring scoring;
  float routed_scaling_factor;
  Activation activation;
};

struct MoeArgs : MoeShape {
  bool exact;                    // as in QLinearArgs
  const float* x;                // (tokens, width)
  const float* router_logits;    // (tokens, experts)
  const float* correction_bias;  // (experts)
  const PackedMatrix* up;        // `experts` of them
  const PackedMatrix* down;      // `experts` of them
  float* y;                      // (tokens, width)
};

}  // namespace edge
