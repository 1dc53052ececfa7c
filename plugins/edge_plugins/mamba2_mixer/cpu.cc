// edge::Mamba2Mixer on the CPU: few tokens are one pass over the state, head by head; many are chunks (group_scan.h).
#include "group_scan.h"

namespace edge::EDGE_ISA {
namespace {

constexpr int64_t kWorthATask = 8;       // prefill makes at least so many tasks where there are enough heads
constexpr int64_t kStepBytes = 1 << 17;  // of state that a task of single steps moves
constexpr int64_t kFewTokens = 8;        // drafts to verify, for instance: one after another, while the state is cached

// ---- Few tokens ----

// The arguments for position t of several, whose states go on from where the position before left them.
Mamba2MixerArgs from_position(Mamba2MixerArgs a, int64_t t) {
  if (t > 0) a.past_conv = a.present_conv, a.past_ssm = a.present_ssm;
  return a;
}

// A channel's convolution for one token, and its state moved on. kPast is 0 where the compiler does not know it.
template <int64_t kPast>
float convolve_channel(int64_t any_past, const float* weight, const float* old, float x, float* now) {
  const int64_t past = kPast ? kPast : any_past;
  float value = weight[past] * x;
  for (int64_t tap = 0; tap < past; ++tap) value += weight[tap] * old[tap];
  for (int64_t tap = 0; tap + 1 < past; ++tap) now[tap] = old[tap + 1];
  now[past - 1] = x;
  return value;
}

// Convolution and SiLU of `count` channels from `first` for one token, whose inputs stand at x.
void convolve_step(const Mamba2MixerArgs& a, int64_t batch, int64_t first, int64_t count, const float* x, float* out) {
  const int64_t past = a.kernel - 1, state = ((batch * Sizes(a).conv_dim) + first) * past;
  const float *old = a.past_conv + state, *weight = a.conv_weight + (first * a.kernel);
  float* now = a.present_conv + state;
  if (past == 3) {
    for (int64_t c = 0; c < count; ++c) {
      out[c] = convolve_channel<3>(3, weight + (4 * c), old + (3 * c), x[c], now + (3 * c));
    }
  } else {
    for (int64_t c = 0; c < count; ++c) {
      out[c] = convolve_channel<0>(past, weight + (a.kernel * c), old + (past * c), x[c], now + (past * c));
    }
  }
  for (int64_t c = 0; c < count; ++c) out[c] += a.conv_bias[first + c];
  silu_in_place(out, count);
}

struct HeadStep {
  float decay;  // exp(dt a)
  float dt;
  const float* x;  // (head_dim)
  const float* b;  // (state)
  const float* c;  // (state)
  int64_t base;    // of the head's state
};

// The state's update and y = h C for one head.
template <Type kType>
void scan_step(const Mamba2MixerArgs& a, const HeadStep& head, float* y) {
  for (int64_t p = 0; p < a.head_dim; p += kWidth) {
    const int64_t rows = std::min<int64_t>(kWidth, a.head_dim - p);
    Floats sums[kWidth] = {};
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t row = head.base + ((p + r) * a.state);
      const float added = head.dt * head.x[p + r];
      Floats dots{};
      for (int64_t n = 0; n < a.state; n += kWidth) {
        const Floats h = load_state<kType>(a.past_ssm, row + n) * head.decay + added * load(head.b + n);
        store_state<kType>(a.present_ssm, row + n, h);
        dots += h * load(head.c + n);
      }
      sums[r] = dots;
    }
    const Floats result = sum_rows(sums);
    for (int64_t r = 0; r < rows; ++r) y[p + r] = result[r];
  }
}

// The same for a state that is no multiple of the vectors' width.
void scan_step_any(const Mamba2MixerArgs& a, const HeadStep& head, float* y) {
  for (int64_t p = 0; p < a.head_dim; ++p) {
    const int64_t row = head.base + (p * a.state);
    y[p] = 0;
    for (int64_t n = 0; n < a.state; ++n) {
      const float h = load_one(a.ssm_type, a.past_ssm, row + n) * head.decay + head.dt * head.x[p] * head.b[n];
      store_one(a.ssm_type, a.present_ssm, row + n, h);
      y[p] += h * head.c[n];
    }
  }
}

void scan_head(const Mamba2MixerArgs& a, const HeadStep& head, float* y) {
  if (a.state % kWidth != 0) return scan_step_any(a, head, y);
  if (a.ssm_type == Type::kFloat32) return scan_step<Type::kFloat32>(a, head, y);
  if (a.ssm_type == Type::kFloat16) return scan_step<Type::kFloat16>(a, head, y);
  scan_step<Type::kBfloat16>(a, head, y);
}

// Everything but the norm for heads [first, last) of one position, whose states `a` says; b and c are (groups, state).
void step_heads(const Mamba2MixerArgs& a, int64_t batch, int64_t t, int64_t first, int64_t last, const float* b,
                const float* c) {
  const Sizes s(a);
  Frame frame;
  const int64_t position = (batch * a.length) + t;
  const float* row = a.proj + (position * s.proj_dim);
  const int64_t channel = first * a.head_dim, count = (last - first) * a.head_dim;
  auto* x = frame.take<float>(count);
  auto* gate = frame.take<float>(count);
  convolve_step(a, batch, channel, count, row + s.inner + channel, x);
  std::copy_n(row + channel, count, gate);
  silu_in_place(gate, count);
  float* y = a.y + (position * s.inner) + channel;
  for (int64_t h = first; h < last; ++h) {
    const float dt = time_step(a, row, h);
    const int64_t at = (h - first) * a.head_dim, shared = h / s.group_heads * a.state;
    const int64_t base = ((batch * a.heads) + h) * a.head_dim * a.state;
    scan_head(a, {std::exp(-dt * std::exp(a.a_log[h])), dt, x + at, b + shared, c + shared, base}, y + at);
    for (int64_t p = at; p < at + a.head_dim; ++p) y[p] = (y[p] + a.d[h] * x[p]) * gate[p];
  }
}

void steps(const Mamba2MixerArgs& a, const Parallel& parallel) {
  const Sizes s(a);
  Frame frame;
  const int64_t positions = a.batch * a.length;
  auto* bc = frame.take<float>(positions * 2 * s.bc);
  for (int64_t position = 0; position < positions; ++position) {
    const float* x = a.proj + (position * s.proj_dim) + (2 * s.inner);
    const int64_t batch = position / a.length, t = position % a.length;
    convolve_step(from_position(a, t), batch, s.inner, 2 * s.bc, x, bc + (position * 2 * s.bc));
  }
  const int64_t head_bytes = a.head_dim * a.state * static_cast<int64_t>(size_of(a.ssm_type));
  const int64_t together = std::clamp<int64_t>(kStepBytes / head_bytes, 1, a.heads);
  const int64_t tasks = (a.heads + together - 1) / together;
  parallel(static_cast<size_t>(a.batch * tasks), [&](size_t index) {
    const int64_t batch = static_cast<int64_t>(index) / tasks, first = static_cast<int64_t>(index) % tasks * together;
    for (int64_t t = 0; t < a.length; ++t) {
      const float* b = bc + (((batch * a.length) + t) * 2 * s.bc);
      step_heads(from_position(a, t), batch, t, first, std::min(first + together, a.heads), b, b + s.bc);
    }
  });
  const int64_t width = s.inner / a.groups;
  for (int64_t g = 0; g < positions * a.groups; ++g) {
    normalise(a, a.y + (g * width), a.norm_weight + (g % a.groups * width));
  }
}

// ---- Many tokens ----

// The last kernel - 1 inputs of every channel.
void carry_convolution(const Mamba2MixerArgs& a, int64_t batch) {
  const Sizes s(a);
  for (int64_t c = 0; c < s.conv_dim; ++c) {
    const float* old = a.past_conv + (((batch * s.conv_dim) + c) * s.past);
    float* now = a.present_conv + (((batch * s.conv_dim) + c) * s.past);
    for (int64_t tap = 0; tap < s.past; ++tap) {
      const int64_t t = a.length - s.past + tap;
      now[tap] = t < 0 ? old[t + s.past] : a.proj[(((batch * a.length) + t) * s.proj_dim) + s.inner + c];
    }
  }
}

void prefill(const Mamba2MixerArgs& a, const Parallel& parallel) {
  const Sizes s(a);
  const int64_t wanted = (kWorthATask + (a.batch * a.groups) - 1) / (a.batch * a.groups);
  const int64_t parts = std::clamp<int64_t>(wanted, 1, s.group_heads);
  const int64_t together = (s.group_heads + parts - 1) / parts, tasks = (s.group_heads + together - 1) / together;
  parallel(static_cast<size_t>(a.batch * a.groups * tasks), [&](size_t index) {
    const int64_t group = static_cast<int64_t>(index) / tasks % a.groups;
    const int64_t batch = static_cast<int64_t>(index) / tasks / a.groups;
    const int64_t first = (group * s.group_heads) + (static_cast<int64_t>(index) % tasks * together);
    GroupScan(a, batch, first, std::min(first + together, (group + 1) * s.group_heads)).run();
  });
  constexpr int64_t rows = 16;
  const int64_t width = s.inner / a.groups, all = a.batch * a.length;
  parallel(static_cast<size_t>((all + rows - 1) / rows), [&](size_t index) {
    const int64_t first = static_cast<int64_t>(index) * rows;
    for (int64_t t = first; t < std::min(first + rows, all); ++t) {
      for (int64_t g = 0; g < a.groups; ++g) {
        normalise(a, a.y + (t * s.inner) + (g * width), a.norm_weight + (g * width));
      }
    }
  });
  parallel(static_cast<size_t>(a.batch), [&](size_t batch) { carry_convolution(a, static_cast<int64_t>(batch)); });
}

void keep_states(const Mamba2MixerArgs& a) {
  const Sizes s(a);
  const auto ssm = static_cast<size_t>(a.batch * s.inner * a.state) * size_of(a.ssm_type);
  if (a.present_conv != a.past_conv) std::copy_n(a.past_conv, a.batch * s.conv_dim * s.past, a.present_conv);
  if (a.present_ssm != a.past_ssm) std::memcpy(a.present_ssm, a.past_ssm, ssm);
}

}  // namespace

void mamba2_mixer(const Mamba2MixerArgs& args, const Parallel& parallel) {
  if (args.batch == 0 || args.length == 0) return keep_states(args);
  // A narrower state would be rounded after every position instead of once.
  const bool few = args.length <= kFewTokens && args.ssm_type == Type::kFloat32;
  if (few || args.length == 1) return steps(args, parallel);
  prefill(args, parallel);
}

}  // namespace edge::EDGE_ISA
