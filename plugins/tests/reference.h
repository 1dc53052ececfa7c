// The operators once more, slowly and in double, from op.py alone: what native_test.cc compares the kernels with.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "../edge_plugins/cached_attention/kernel.h"
#include "../edge_plugins/mamba2_mixer/kernel.h"
#include "../edge_plugins/moe/kernel.h"
#include "../edge_plugins/native/packed.h"
#include "../edge_plugins/qlinear/kernel.h"

namespace edge::reference {

using Doubles = std::vector<double>;

inline double from_half(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double magnitude = exponent == 0    ? std::ldexp(mantissa, -24)
                           : exponent == 31 ? (mantissa != 0 ? std::numeric_limits<double>::quiet_NaN()
                                                             : std::numeric_limits<double>::infinity())
                                            : std::ldexp(mantissa + 1024, exponent - 25);
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

// Rounds to nearest, ties to even.
inline uint16_t to_half(float value) {
  const double size = std::fabs(static_cast<double>(value));
  const int sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isnan(value)) return static_cast<uint16_t>(sign | 0x7e00);
  if (size >= 65520) return static_cast<uint16_t>(sign | 0x7c00);
  const int exponent = size == 0 ? -14 : std::max(std::ilogb(size), -14);
  const int mantissa = static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent)));
  return static_cast<uint16_t>(sign | (((exponent + 15) << 10) + mantissa - 1024));
}

inline uint16_t to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (std::isnan(value)) return static_cast<uint16_t>(bits >> 16 | 64);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline double from_bfloat16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

// Element of an array of a state or cache type; integers as they are.
inline double load(const void* data, Type type, int64_t index) {
  switch (type) {
    case Type::kFloat32:
      return static_cast<const float*>(data)[index];
    case Type::kFloat16:
      return from_half(static_cast<const uint16_t*>(data)[index]);
    case Type::kBfloat16:
      return from_bfloat16(static_cast<const uint16_t*>(data)[index]);
    default:
      return static_cast<const int8_t*>(data)[index];
  }
}

// One weight, read from the layout that packed.h describes.
inline double weight_at(const PackedMatrix& m, int64_t i, int64_t o) {
  const int64_t panel = o / kPanel, lane = o % kPanel;
  const uint8_t* values = m.values + static_cast<size_t>(panel) * m.panel_bytes();
  double value;
  if (m.format == Format::kFloat32) {
    value = load(values, Type::kFloat32, i * kPanel + lane);
  } else if (m.format == Format::kBfloat16) {
    value = load(values, Type::kBfloat16, (i / 2 * kPanel + lane) * 2 + i % 2);
  } else if (m.format == Format::kInt8) {
    value = values[(i / 4 * kPanel + lane) * 4 + i % 4] - 128;
  } else {
    const int byte = values[(i / 8 * kPanel + lane) * 4 + i % 4];
    value = (i % 8 < 4 ? byte & 15 : byte >> 4) - 8;
  }
  if (!m.quantized()) return value;
  const uint8_t* scales = m.scales + static_cast<size_t>(panel) * m.panel_scale_bytes();
  return value * load(scales, m.half_scales ? Type::kFloat16 : Type::kFloat32, i / m.block * kPanel + lane);
}

// The whole matrix (in, out).
inline Doubles dense(const PackedMatrix& m) {
  Doubles all(static_cast<size_t>(m.in * m.out));
  for (int64_t i = 0; i < m.in; ++i) {
    for (int64_t o = 0; o < m.out; ++o) all[static_cast<size_t>(i * m.out + o)] = weight_at(m, i, o);
  }
  return all;
}

// x (in) times matrix (in, out).
template <class T>
Doubles product(const T* x, const Doubles& matrix, int64_t in, int64_t out) {
  Doubles y(static_cast<size_t>(out), 0.0);
  for (int64_t i = 0; i < in; ++i) {
    for (int64_t o = 0; o < out; ++o) y[static_cast<size_t>(o)] += x[i] * matrix[static_cast<size_t>(i * out + o)];
  }
  return y;
}

inline Doubles qlinear(const QLinearArgs& a) {
  const Doubles matrix = dense(*a.weight);
  Doubles y;
  for (int64_t token = 0; token < a.tokens; ++token) {
    const Doubles row = product(a.x + token * a.weight->in, matrix, a.weight->in, a.weight->out);
    y.insert(y.end(), row.begin(), row.end());
  }
  return y;
}

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

inline Doubles activated(const Doubles& risen, Activation activation) {
  const size_t width = activation == Activation::kSiluGated ? risen.size() / 2 : risen.size();
  Doubles result(width);
  for (size_t i = 0; i < width; ++i) {
    const double x = risen[i];
    result[i] = activation == Activation::kRelu2  ? (x > 0 || std::isnan(x) ? x * x : 0)
                : activation == Activation::kGelu ? 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)))
                                                  : x * sigmoid(x) * risen[width + i];
  }
  return result;
}

// Indices of the `count` largest, the lower index first among equals.
inline std::vector<size_t> largest(const Doubles& values, int64_t count) {
  std::vector<size_t> order(values.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return values[a] > values[b]; });
  order.resize(static_cast<size_t>(count));
  return order;
}

// Weight of every expert for one token, 0 for those not chosen.
inline Doubles routed(const MoeArgs& a, int64_t token) {
  const size_t experts = static_cast<size_t>(a.experts), size = experts / static_cast<size_t>(a.n_group);
  const float* logits = a.router_logits + token * a.experts;
  Doubles scores(experts), choice(experts), weights(experts, 0.0), ranks;
  double all = 0;
  for (size_t e = 0; e < experts; ++e) all += std::exp(static_cast<double>(logits[e]));
  for (size_t e = 0; e < experts; ++e) {
    scores[e] = a.scoring == Scoring::kSoftmax ? std::exp(static_cast<double>(logits[e])) / all : sigmoid(logits[e]);
    choice[e] = scores[e] + a.correction_bias[e];
  }
  for (size_t first = 0; first < experts; first += size) {
    const auto begin = choice.begin() + static_cast<std::ptrdiff_t>(first);
    Doubles group(begin, begin + static_cast<std::ptrdiff_t>(size));
    std::sort(group.rbegin(), group.rend());
    ranks.push_back(group[0] + (size > 1 ? group[1] : 0.0));
  }
  Doubles kept(experts, -std::numeric_limits<double>::infinity());
  for (size_t group : largest(ranks, a.topk_group)) {
    for (size_t e = group * size; e < (group + 1) * size; ++e) kept[e] = choice[e];
  }
  const auto chosen = largest(kept, a.top_k);
  double sum = 1e-20;
  for (size_t e : chosen) sum += scores[e];
  for (size_t e : chosen) weights[e] = scores[e] / (a.norm_topk_prob ? sum : 1.0) * a.routed_scaling_factor;
  return weights;
}

inline Doubles moe(const MoeArgs& a) {
  Doubles y(static_cast<size_t>(a.tokens * a.width), 0.0);
  for (int64_t token = 0; token < a.tokens; ++token) {
    const Doubles weights = routed(a, token);
    for (int64_t e = 0; e < a.experts; ++e) {
      if (weights[static_cast<size_t>(e)] == 0.0) continue;
      const Doubles risen = product(a.x + token * a.width, dense(a.up[e]), a.width, a.up[e].out);
      const Doubles fallen = product(activated(risen, a.activation).data(), dense(a.down[e]), a.intermediate, a.width);
      for (int64_t i = 0; i < a.width; ++i) {
        y[static_cast<size_t>(token * a.width + i)] += weights[static_cast<size_t>(e)] * fallen[static_cast<size_t>(i)];
      }
    }
  }
  return y;
}

struct MambaResult {
  Doubles y, conv, ssm;
};

// One position of one batch row: advances `window` (conv_dim, kernel - 1) and `ssm`, returns y (inner).
inline Doubles mamba2_step(const Mamba2MixerArgs& a, const float* proj, double* window, double* ssm) {
  const int64_t inner = a.heads * a.head_dim, bc = a.groups * a.state, conv_dim = inner + 2 * bc, past = a.kernel - 1;
  Doubles xbc(static_cast<size_t>(conv_dim)), y(static_cast<size_t>(inner));
  for (int64_t c = 0; c < conv_dim; ++c) {
    double* row = window + c * past;
    double sum = a.conv_bias[c] + proj[inner + c] * static_cast<double>(a.conv_weight[c * a.kernel + past]);
    for (int64_t k = 0; k < past; ++k) sum += row[k] * a.conv_weight[c * a.kernel + k];
    std::copy(row + 1, row + past, row);
    row[past - 1] = proj[inner + c];
    xbc[static_cast<size_t>(c)] = sum * sigmoid(sum);
  }
  const double *b = xbc.data() + inner, *c = b + bc;
  for (int64_t h = 0; h < a.heads; ++h) {
    const int64_t group = h / (a.heads / a.groups) * a.state;
    const double raw = proj[inner + conv_dim + h] + static_cast<double>(a.dt_bias[h]);
    const double softplus = raw > 30 ? raw : std::log1p(std::exp(raw));
    const double dt = std::clamp<double>(softplus, a.dt_min, a.dt_max);
    const double decay = std::exp(-std::exp(static_cast<double>(a.a_log[h])) * dt);
    for (int64_t p = h * a.head_dim; p < (h + 1) * a.head_dim; ++p) {
      double* row = ssm + p * a.state;
      double sum = a.d[h] * xbc[static_cast<size_t>(p)];
      for (int64_t n = 0; n < a.state; ++n) {
        row[n] = decay * row[n] + dt * xbc[static_cast<size_t>(p)] * b[group + n];
        sum += row[n] * c[group + n];
      }
      y[static_cast<size_t>(p)] = sum * proj[p] * sigmoid(proj[p]);
    }
  }
  const int64_t width = inner / a.groups;
  for (int64_t first = 0; first < inner; first += width) {
    double squares = 0;
    for (int64_t p = first; p < first + width; ++p) squares += y[static_cast<size_t>(p)] * y[static_cast<size_t>(p)];
    const double rms = std::sqrt(squares / static_cast<double>(width) + a.eps);
    for (int64_t p = first; p < first + width; ++p) y[static_cast<size_t>(p)] *= a.norm_weight[p] / rms;
  }
  return y;
}

inline MambaResult mamba2_mixer(const Mamba2MixerArgs& a) {
  const int64_t inner = a.heads * a.head_dim, conv_dim = inner + 2 * a.groups * a.state;
  const int64_t conv_size = conv_dim * (a.kernel - 1), ssm_size = inner * a.state, width = inner + conv_dim + a.heads;
  MambaResult result;
  result.conv.assign(a.past_conv, a.past_conv + a.batch * conv_size);
  for (int64_t i = 0; i < a.batch * ssm_size; ++i) result.ssm.push_back(load(a.past_ssm, a.ssm_type, i));
  for (int64_t b = 0; b < a.batch; ++b) {
    for (int64_t t = 0; t < a.length; ++t) {
      const Doubles row = mamba2_step(a, a.proj + (b * a.length + t) * width, result.conv.data() + b * conv_size,
                                      result.ssm.data() + b * ssm_size);
      result.y.insert(result.y.end(), row.begin(), row.end());
    }
  }
  return result;
}

// y from the caches as `a.present_*` holds them: what was stored is tested apart.
inline Doubles cached_attention(const CachedAttentionArgs& a) {
  const auto at = [&](const void* cache, const float* scales, int64_t row, int64_t d) {
    const double value = load(cache, a.cache_type, row * a.head_dim + d);
    return a.cache_type == Type::kInt8 ? value * scales[row] : value;
  };
  Doubles y;
  for (int64_t index = 0; index < a.batch * a.length * a.heads; ++index) {
    const int64_t head = index % a.heads, b = index / (a.heads * a.length);
    const int64_t end = a.past_length[b] + index / a.heads % a.length + 1;
    const int64_t begin = a.window > 0 ? std::max<int64_t>(0, end - a.window) : 0;
    const int64_t row = (b * a.kv_heads + head / (a.heads / a.kv_heads)) * a.capacity;
    Doubles scores, mixed(static_cast<size_t>(a.head_dim), 0.0);
    for (int64_t p = begin; p < end; ++p) {
      double sum = 0;
      for (int64_t d = 0; d < a.head_dim; ++d) {
        sum += a.query[index * a.head_dim + d] * at(a.present_key, a.present_key_scale, row + p, d);
      }
      scores.push_back(a.scale * sum);
    }
    const double highest = *std::max_element(scores.begin(), scores.end());
    double total = 0;
    for (double& score : scores) total += score = std::exp(score - highest);
    for (int64_t p = begin; p < end; ++p) {
      for (int64_t d = 0; d < a.head_dim; ++d) {
        mixed[static_cast<size_t>(d)] +=
            scores[static_cast<size_t>(p - begin)] / total * at(a.present_value, a.present_value_scale, row + p, d);
      }
    }
    y.insert(y.end(), mixed.begin(), mixed.end());
  }
  return y;
}

}  // namespace edge::reference
