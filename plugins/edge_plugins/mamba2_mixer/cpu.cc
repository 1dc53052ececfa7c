// edge::Mamba2Mixer on the CPU.
//
// One token is one pass over the state, head by head. Several tokens are state-space duality (Dao and Gu 2024, arXiv
// 2405.21060, section 6) by chunks of 64 positions: within a chunk the scan is a masked product of C, B and x, between
// chunks the state is carried. What the heads of a group share (B, C and C B^T) is made once for them.
#include <algorithm>
#include <cmath>

#include "../native/multiply.h"
#include "../native/scratch.h"
#include "kernel.h"

namespace edge::EDGE_ISA {
namespace {

constexpr int64_t kChunk = 64;           // positions; a multiple of every kWidth
constexpr int64_t kWorthATask = 8;       // prefill makes at least so many tasks where there are enough heads
constexpr int64_t kStepBytes = 1 << 17;  // of state that a task of a single step moves

int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

struct Sizes {
  explicit Sizes(const Mamba2MixerArgs& a)
      : inner(a.heads * a.head_dim),
        bc(a.groups * a.state),
        conv_dim(inner + 2 * bc),
        proj_dim(inner + conv_dim + a.heads),
        group_heads(a.heads / a.groups),
        past(a.kernel - 1) {}

  int64_t inner;        // width of x and z
  int64_t bc;           // width of B and of C
  int64_t conv_dim;     // channels of the convolution: x, B, C
  int64_t proj_dim;     // z, x, B, C, dt
  int64_t group_heads;  // heads that share B and C
  int64_t past;         // positions in the convolution's state
};

void silu_in_place(float* x, int64_t count) {
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) store(x + i, silu(load(x + i)));
  if (i == count) return;
  float rest[kWidth] = {};
  std::copy(x + i, x + count, rest);
  store(rest, silu(load(rest)));
  std::copy_n(rest, count - i, x + i);
}

float time_step(const Mamba2MixerArgs& a, const float* proj_row, int64_t head) {
  const float raw = proj_row[(2 * a.heads * a.head_dim) + (2 * a.groups * a.state) + head] + a.dt_bias[head];
  const float step = raw > 20.0f ? raw : std::log1p(std::exp(raw));
  const float raised = step < a.dt_min ? a.dt_min : step;
  return raised > a.dt_max ? a.dt_max : raised;
}

// RMS norm of one group's channels of a gated y row, in place, times the weight.
void normalise(const Mamba2MixerArgs& a, float* y, const float* weight) {
  const int64_t width = a.heads / a.groups * a.head_dim;
  float squares = 0;
  int64_t i = 0;
  Floats total{};
  for (; i + kWidth <= width; i += kWidth) total += load(y + i) * load(y + i);
  for (; i < width; ++i) squares += y[i] * y[i];
  const float scale = 1.0f / std::sqrt((squares + sum(total)) / static_cast<float>(width) + a.eps);
  for (i = 0; i < width; ++i) y[i] = y[i] * scale * weight[i];
}

// ---------------------------------------------------------------------------------------------- state's storage

template <Type kType>
Floats load_state(const void* state, int64_t index) {
  if constexpr (kType == Type::kFloat32) return load(static_cast<const float*>(state) + index);
  const auto* half = static_cast<const uint16_t*>(state) + index;
  if constexpr (kType == Type::kFloat16) return load_float16(half);
  return widen_bfloat16(load<Halves>(half));
}

template <Type kType>
void store_state(void* state, int64_t index, Floats v) {
  if constexpr (kType == Type::kFloat32) {
    store(static_cast<float*>(state) + index, v);
  } else if constexpr (kType == Type::kFloat16) {
    store_float16(static_cast<uint16_t*>(state) + index, v);
  } else {
    store(static_cast<uint16_t*>(state) + index, round_to_bfloat16(v));
  }
}

float load_one(Type type, const void* state, int64_t index) {
  if (type == Type::kFloat32) return static_cast<const float*>(state)[index];
  const uint16_t half = static_cast<const uint16_t*>(state)[index];
  return type == Type::kFloat16 ? float16_to_float(half) : bfloat16_to_float(half);
}

void store_one(Type type, void* state, int64_t index, float x) {
  if (type == Type::kFloat32) {
    static_cast<float*>(state)[index] = x;
  } else {
    static_cast<uint16_t*>(state)[index] = type == Type::kFloat16 ? float_to_float16(x) : float_to_bfloat16(x);
  }
}

// ---------------------------------------------------------------------------------------------- one token

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

// Everything but the norm for heads [first, last) of one row; b and c are (groups, state).
void step_heads(const Mamba2MixerArgs& a, int64_t batch, int64_t first, int64_t last, const float* b, const float* c) {
  const Sizes s(a);
  Frame frame;
  const float* row = a.proj + (batch * s.proj_dim);
  const int64_t channel = first * a.head_dim, count = (last - first) * a.head_dim;
  auto* x = frame.take<float>(count);
  auto* gate = frame.take<float>(count);
  convolve_step(a, batch, channel, count, row + s.inner + channel, x);
  std::copy_n(row + channel, count, gate);
  silu_in_place(gate, count);
  float* y = a.y + (batch * s.inner) + channel;
  for (int64_t h = first; h < last; ++h) {
    const float dt = time_step(a, row, h);
    const int64_t at = (h - first) * a.head_dim, shared = h / s.group_heads * a.state;
    const int64_t base = ((batch * a.heads) + h) * a.head_dim * a.state;
    scan_head(a, {std::exp(-dt * std::exp(a.a_log[h])), dt, x + at, b + shared, c + shared, base}, y + at);
    for (int64_t p = at; p < at + a.head_dim; ++p) y[p] = (y[p] + a.d[h] * x[p]) * gate[p];
  }
}

void step(const Mamba2MixerArgs& a, const Parallel& parallel) {
  const Sizes s(a);
  Frame frame;
  auto* bc = frame.take<float>(a.batch * 2 * s.bc);
  for (int64_t batch = 0; batch < a.batch; ++batch) {
    const float* x = a.proj + (batch * s.proj_dim) + (2 * s.inner);
    convolve_step(a, batch, s.inner, 2 * s.bc, x, bc + (batch * 2 * s.bc));
  }
  const int64_t head_bytes = a.head_dim * a.state * static_cast<int64_t>(size_of(a.ssm_type));
  const int64_t together = std::clamp<int64_t>(kStepBytes / head_bytes, 1, a.heads);
  const int64_t tasks = (a.heads + together - 1) / together;
  parallel(static_cast<size_t>(a.batch * tasks), [&](size_t index) {
    const int64_t batch = static_cast<int64_t>(index) / tasks, first = static_cast<int64_t>(index) % tasks * together;
    const float* b = bc + (batch * 2 * s.bc);
    step_heads(a, batch, first, std::min(first + together, a.heads), b, b + s.bc);
  });
  const int64_t width = s.inner / a.groups;
  for (int64_t g = 0; g < a.batch * a.groups; ++g) {
    normalise(a, a.y + (g * width), a.norm_weight + (g % a.groups * width));
  }
}

// ---------------------------------------------------------------------------------------------- many tokens

constexpr int64_t kAhead =
    8;  // rows; a group's part of proj is a short run in each long row, which no hardware foresees

void prefetch_row(const float* row, int64_t count) {
  for (int64_t i = 0; i < count; i += 16) __builtin_prefetch(row + i);
}

// Convolution and SiLU of a range of channels over time; weights and carried inputs stand channel by channel.
class Convolution {
 public:
  Convolution(Frame& frame, const Mamba2MixerArgs& a, int64_t batch, int64_t first, int64_t count)
      : kernel_(a.kernel), count_(count), stride_(Sizes(a).proj_dim), bias_(a.conv_bias + first) {
    const Sizes s(a);
    inputs_ = a.proj + (batch * a.length * s.proj_dim) + s.inner + first;
    auto* weight = frame.take<float>(a.kernel * count);
    auto* past = frame.take<float>(s.past * count);
    const float* old = a.past_conv + (((batch * s.conv_dim) + first) * s.past);
    for (int64_t c = 0; c < count; ++c) {
      for (int64_t tap = 0; tap < a.kernel; ++tap) {
        weight[(tap * count) + c] = a.conv_weight[((first + c) * a.kernel) + tap];
      }
      for (int64_t tap = 0; tap < s.past; ++tap) past[(tap * count) + c] = old[(c * s.past) + tap];
    }
    weight_ = weight, past_ = past;
  }

  // out (positions, count) for positions [start, start + positions).
  void run(int64_t start, int64_t positions, float* out) const {
    for (int64_t t = start; t < start + positions; ++t, out += count_) {
      prefetch_row(inputs_ + ((t + kAhead) * stride_), count_);
      std::copy_n(bias_, count_, out);
      int64_t tap = 0;
      for (; tap + 4 <= kernel_; tap += 4) add_four_taps(t, tap, out);
      for (; tap < kernel_; ++tap) add_tap(t, tap, out);
      silu_in_place(out, count_);
    }
  }

 private:
  // The row that a tap reads for position t: one of proj, or a carried one.
  const float* input(int64_t t, int64_t tap) const {
    const int64_t from = t - (kernel_ - 1) + tap;
    return from < 0 ? past_ + ((from + kernel_ - 1) * count_) : inputs_ + (from * stride_);
  }

  void add_tap(int64_t t, int64_t tap, float* __restrict out) const {
    const float *x = input(t, tap), *weight = weight_ + (tap * count_);
    for (int64_t c = 0; c < count_; ++c) out[c] += weight[c] * x[c];
  }

  // The usual kernel has four taps: one pass instead of four.
  void add_four_taps(int64_t t, int64_t tap, float* __restrict out) const {
    const float *x0 = input(t, tap), *x1 = input(t, tap + 1), *x2 = input(t, tap + 2), *x3 = input(t, tap + 3);
    const float *w0 = weight_ + (tap * count_), *w1 = w0 + count_, *w2 = w1 + count_, *w3 = w2 + count_;
    for (int64_t c = 0; c < count_; ++c) out[c] += w0[c] * x0[c] + w1[c] * x1[c] + w2[c] * x2[c] + w3[c] * x3[c];
  }

  int64_t kernel_, count_, stride_;
  const float* bias_;
  const float* inputs_;
  const float* weight_;  // (kernel, count)
  const float* past_;    // (kernel - 1, count)
};

void transpose(const float* from, int64_t rows, int64_t columns, float* to, int64_t to_stride) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) to[(j * to_stride) + i] = from[(i * columns) + j];
  }
}

// Heads [first, last) of one group and one batch row, over all positions.
class GroupScan {
 public:
  GroupScan(const Mamba2MixerArgs& a, int64_t batch, int64_t first, int64_t last)
      : a_(a),
        s_(a),
        batch_(batch),
        first_(first),
        heads_(last - first),
        group_(first / s_.group_heads),
        padded_(round_up(a.head_dim, kWidth)),
        conv_x_(frame_, a, batch, first * a.head_dim, heads_ * a.head_dim),
        conv_b_(frame_, a, batch, s_.inner + (group_ * a.state), a.state),
        conv_c_(frame_, a, batch, s_.inner + s_.bc + (group_ * a.state), a.state) {
    x_ = frame_.take<float>(kChunk * heads_ * a.head_dim);
    b_ = frame_.take<float>(kChunk * a.state);
    c_ = frame_.take<float>(kChunk * a.state);
    b_by_state_ = frame_.take<float>(a.state * kChunk);
    scores_ = frame_.take<float>(kChunk * kChunk);
    mixing_ = frame_.take<float>(kChunk * kChunk);
    x_dt_ = frame_.take<float>(kChunk * padded_);
    y_ = frame_.take<float>(kChunk * padded_);
    states_ = frame_.take<float>(heads_ * a.state * padded_);
  }

  void run() {
    load_states();
    for (int64_t start = 0; start < a_.length; start += kChunk) chunk(start, std::min(kChunk, a_.length - start));
    store_states();
  }

 private:
  float* state_of(int64_t head) { return states_ + (head * a_.state * padded_); }
  int64_t base_of(int64_t head) const { return ((batch_ * a_.heads) + first_ + head) * a_.head_dim * a_.state; }

  void load_states() {
    for (int64_t h = 0; h < heads_; ++h) {
      std::fill_n(state_of(h), a_.state * padded_, 0.0f);
      for (int64_t p = 0; p < a_.head_dim; ++p) {
        for (int64_t n = 0; n < a_.state; ++n) {
          state_of(h)[(n * padded_) + p] = load_one(a_.ssm_type, a_.past_ssm, base_of(h) + (p * a_.state) + n);
        }
      }
    }
  }

  void store_states() {
    for (int64_t h = 0; h < heads_; ++h) {
      for (int64_t p = 0; p < a_.head_dim; ++p) {
        for (int64_t n = 0; n < a_.state; ++n) {
          store_one(a_.ssm_type, a_.present_ssm, base_of(h) + (p * a_.state) + n, state_of(h)[(n * padded_) + p]);
        }
      }
    }
  }

  void chunk(int64_t start, int64_t count) {
    conv_x_.run(start, count, x_);
    conv_b_.run(start, count, b_);
    conv_c_.run(start, count, c_);
    if (count < kChunk) std::fill_n(b_by_state_, a_.state * kChunk, 0.0f);
    transpose(b_, count, a_.state, b_by_state_, kChunk);
    multiply({count, round_up(count, kWidth), a_.state, c_, a_.state, b_by_state_, kChunk, scores_, kChunk, false});
    for (int64_t h = 0; h < heads_; ++h) head(h, start, count);
  }

  void head(int64_t h, int64_t start, int64_t count) {
    float dt[kChunk], decay[kChunk] = {};  // decay: the sum of dt * a up to a position, itself included
    const float rate = -std::exp(a_.a_log[first_ + h]);
    float total = 0;
    for (int64_t i = 0; i < count; ++i) {
      dt[i] = time_step(a_, proj_row(start + i), first_ + h);
      decay[i] = total += dt[i] * rate;
    }
    scale_rows(h, count, dt);
    multiply({count, padded_, a_.state, c_, a_.state, state_of(h), padded_, y_, padded_, false});
    for (int64_t i = 0; i < count; ++i) {
      const float since_start = std::exp(decay[i]);
      for (int64_t p = 0; p < padded_; ++p) y_[(i * padded_) + p] *= since_start;
    }
    mix(decay, count);
    gate(h, start, count);
    for (int64_t i = 0; i < count; ++i) {
      const float to_end = std::exp(total - decay[i]);
      for (int64_t p = 0; p < padded_; ++p) x_dt_[(i * padded_) + p] *= to_end;
    }
    const float over_all = std::exp(total);
    for (int64_t i = 0; i < a_.state * padded_; ++i) state_of(h)[i] *= over_all;
    multiply({a_.state, padded_, count, b_by_state_, kChunk, x_dt_, padded_, state_of(h), padded_, true});
  }

  const float* proj_row(int64_t t) const { return a_.proj + (((batch_ * a_.length) + t) * s_.proj_dim); }
  const float* x_of(int64_t h, int64_t i) const { return x_ + (((i * heads_) + h) * a_.head_dim); }

  void scale_rows(int64_t h, int64_t count, const float* dt) {
    for (int64_t i = 0; i < count; ++i) {
      const float* x = x_of(h, i);
      float* to = x_dt_ + (i * padded_);
      for (int64_t p = 0; p < a_.head_dim; ++p) to[p] = x[p] * dt[i];
      std::fill(to + a_.head_dim, to + padded_, 0.0f);
    }
  }

  // y += (scores times the decay between the positions, where the second is not later) x_dt, by blocks of rows.
  void mix(const float* decay, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      float* row = mixing_ + (i * kChunk);
      for (int64_t j = 0; j <= i; j += kWidth) {
        store(row + j, load(scores_ + (i * kChunk) + j) * exp(decay[i] - load(decay + j)));
      }
      std::fill(row + i + 1, row + round_up(i + 1, kChunk / 4), 0.0f);
    }
    constexpr int64_t rows = kChunk / 4;
    for (int64_t i = 0; i < count; i += rows) {
      const int64_t these = std::min(rows, count - i), depth = std::min(i + rows, count);
      multiply(
          {these, padded_, depth, mixing_ + (i * kChunk), kChunk, x_dt_, padded_, y_ + (i * padded_), padded_, true});
    }
  }

  void gate(int64_t h, int64_t start, int64_t count) {
    const int64_t channel = (first_ + h) * a_.head_dim;
    const float d = a_.d[first_ + h];
    for (int64_t i = 0; i < count; ++i) {
      const float *x = x_of(h, i), *from = y_ + (i * padded_);
      float* y = a_.y + (((batch_ * a_.length) + start + i) * s_.inner) + channel;
      prefetch_row(proj_row(start + i + kAhead) + channel, a_.head_dim);
      std::copy_n(proj_row(start + i) + channel, a_.head_dim, y);
      silu_in_place(y, a_.head_dim);
      for (int64_t p = 0; p < a_.head_dim; ++p) y[p] *= from[p] + d * x[p];
    }
  }

  const Mamba2MixerArgs& a_;
  const Sizes s_;
  const int64_t batch_, first_, heads_, group_, padded_;  // padded_: head_dim up to a whole vector
  Frame frame_;
  Convolution conv_x_, conv_b_, conv_c_;
  float* x_;           // (chunk, heads, head_dim)
  float* b_;           // (chunk, state)
  float* c_;           // (chunk, state)
  float* b_by_state_;  // (state, chunk)
  float* scores_;      // (chunk, chunk): C B^T
  float* mixing_;      // (chunk, chunk)
  float* x_dt_;        // (chunk, padded)
  float* y_;           // (chunk, padded)
  float* states_;      // (heads, state, padded)
};

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
  if (args.length == 1) return step(args, parallel);
  prefill(args, parallel);
}

}  // namespace edge::EDGE_ISA
