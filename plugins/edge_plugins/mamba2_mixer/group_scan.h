// Many tokens at once: state-space duality (Dao and Gu 2024, arXiv 2405.21060, section 6) by chunks of 64 positions.
//
// Within a chunk the scan is a masked product of C, B and x, between chunks the state is carried. What the heads of a
// group share (B, C and C B^T) is made once for them.
#pragma once

#include "../native/multiply.h"
#include "../native/scratch.h"
#include "common.h"

namespace edge::EDGE_ISA {
namespace {

constexpr int64_t kChunk = 64;  // positions; a multiple of every kWidth
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

}  // namespace
}  // namespace edge::EDGE_ISA
