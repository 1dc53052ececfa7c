// edge::CachedAttention on the CPU: online softmax over blocks of keys (Milakov and Gimelshein 2018, arXiv 1805.02867).
//
// A task takes one key-value head, some queries that share it, and a range of keys. Long caches are split so that one
// token keeps all threads busy; where the splits lie depends on positions only.
#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "../native/multiply.h"
#include "../native/scratch.h"
#include "kernel.h"

namespace edge::EDGE_ISA {
namespace {

constexpr int64_t kKeys = 64;     // in a block
constexpr int64_t kSplit = 1024;  // keys of one task when a single token is fed
constexpr int64_t kRows = 256;    // query rows of one task, about
constexpr float kLowest = -3.4e38f;

// ---------------------------------------------------------------------------------------------- the cache

// One key-value head of one batch row: keys or values.
struct CacheHead {
  Type type;
  int64_t head_dim;
  uint8_t* rows;  // (capacity, head_dim)
  float* scales;  // (capacity), int8 only

  uint8_t* row(int64_t position) const { return rows + (static_cast<size_t>(position * head_dim) * size_of(type)); }

  void write(int64_t position, const float* x) const {
    if (type == Type::kInt8) return write_int8(position, x);
    uint8_t* to = row(position);
    if (type == Type::kFloat32) {
      std::copy_n(x, head_dim, reinterpret_cast<float*>(to));
      return;
    }
    int64_t i = 0;
    auto* halves = reinterpret_cast<uint16_t*>(to);
    for (; i + kWidth <= head_dim; i += kWidth) store_float16(halves + i, load(x + i));
    for (; i < head_dim; ++i) halves[i] = float_to_float16(x[i]);
  }

  void write_int8(int64_t position, const float* x) const {
    float most = 0;
    for (int64_t i = 0; i < head_dim; ++i) most = most < std::fabs(x[i]) ? std::fabs(x[i]) : most;
    const float ratio = most / 127.0f, scale = ratio == 0.0f ? 1.0f : ratio;
    auto* to = reinterpret_cast<int8_t*>(row(position));
    for (int64_t i = 0; i < head_dim; ++i) {
      const float rounded = std::nearbyint(x[i] / scale);
      to[i] = static_cast<int8_t>(rounded >= -127.0f && rounded <= 127.0f ? rounded : 0.0f);
    }
    scales[position] = scale;
    for (int64_t i = 0; i < head_dim; ++i) {
      if (!(std::fabs(x[i]) <= 3.4028235e38f)) scales[position] = x[i] - x[i];  // NaN: the row is not finite
    }
  }

  // Rows [first, first + count) as floats (count, stride), filled up with zeros.
  void read(int64_t first, int64_t count, float* out, int64_t stride) const {
    for (int64_t k = 0; k < count; ++k, out += stride) {
      const uint8_t* from = row(first + k);
      int64_t i = 0;
      for (; i + kWidth <= head_dim; i += kWidth) store(out + i, read_vector(from, i, first + k));
      for (; i < head_dim; ++i) out[i] = read_one(from, i, first + k);
      std::fill(out + head_dim, out + stride, 0.0f);
    }
  }

 private:
  Floats read_vector(const uint8_t* from, int64_t i, int64_t position) const {
    if (type == Type::kFloat16) return load_float16(from + (2 * i));
    if (type == Type::kInt8) return load_int8(from + i) * scales[position];
    return load(from + (4 * i));
  }

  float read_one(const uint8_t* from, int64_t i, int64_t position) const {
    if (type == Type::kFloat16) return float16_to_float(reinterpret_cast<const uint16_t*>(from)[i]);
    if (type == Type::kInt8) return static_cast<float>(reinterpret_cast<const int8_t*>(from)[i]) * scales[position];
    return reinterpret_cast<const float*>(from)[i];
  }
};

CacheHead head_of(const CachedAttentionArgs& a, void* cache, float* scales, int64_t head) {
  const int64_t first = head * a.capacity;
  return {a.cache_type, a.head_dim,
          static_cast<uint8_t*>(cache) + (static_cast<size_t>(first * a.head_dim) * size_of(a.cache_type)),
          scales ? scales + first : nullptr};
}

CacheHead keys_of(const CachedAttentionArgs& a, int64_t head) {
  return head_of(a, a.present_key, a.present_key_scale, head);
}

CacheHead values_of(const CachedAttentionArgs& a, int64_t head) {
  return head_of(a, a.present_value, a.present_value_scale, head);
}

template <class T>
void pass_through(const T* past, T* present, int64_t head, size_t count) {
  if (past != present) std::memcpy(present + (head * count), past + (head * count), count * sizeof(T));
}

// Brings one head's cache up to date; head counts through (batch, kv_heads).
void write_new(const CachedAttentionArgs& a, int64_t head) {
  const auto positions = static_cast<size_t>(a.capacity);
  const size_t bytes = positions * static_cast<size_t>(a.head_dim) * size_of(a.cache_type);
  pass_through(static_cast<const uint8_t*>(a.past_key), static_cast<uint8_t*>(a.present_key), head, bytes);
  pass_through(static_cast<const uint8_t*>(a.past_value), static_cast<uint8_t*>(a.present_value), head, bytes);
  if (a.cache_type == Type::kInt8) {
    pass_through(a.past_key_scale, a.present_key_scale, head, positions);
    pass_through(a.past_value_scale, a.present_value_scale, head, positions);
  }
  const int64_t batch = head / a.kv_heads, width = a.kv_heads * a.head_dim;
  for (int64_t t = 0; t < a.length; ++t) {
    const int64_t from = (((batch * a.length) + t) * width) + (head % a.kv_heads * a.head_dim);
    keys_of(a, head).write(a.past_length[batch] + t, a.key + from);
    values_of(a, head).write(a.past_length[batch] + t, a.value + from);
  }
}

// ---------------------------------------------------------------------------------------------- attention

// Queries [first, first + count) of every head that shares one key-value head, over keys [begin, end). Its rows are
// ordered by query, then by head.
class Attend {
 public:
  Attend(const CachedAttentionArgs& a, int64_t head, int64_t first, int64_t count)
      : a_(a),
        head_(head),
        batch_(head / a.kv_heads),
        group_(a.heads / a.kv_heads),
        first_(first),
        rows_(count * group_),
        width_(round_up(a.head_dim, kWidth)) {
    query_ = frame_.take<float>(rows_ * width_);
    keys_ = frame_.take<float>(kKeys * width_);
    by_dim_ = frame_.take<float>(width_ * kKeys);
    scores_ = frame_.take<float>(rows_ * kKeys);
    for (int64_t r = 0; r < rows_; ++r) {
      const float* from = a.query + at(r);
      for (int64_t i = 0; i < a.head_dim; ++i) query_[(r * width_) + i] = from[i] * a.scale;
      std::fill(query_ + (r * width_) + a.head_dim, query_ + ((r + 1) * width_), 0.0f);
    }
  }

  static int64_t partial_size(const CachedAttentionArgs& a, int64_t rows) {
    return rows * (round_up(a.head_dim, kWidth) + 2);
  }

  // The oldest key that any of the queries sees, and the one after the newest.
  int64_t begin() const { return oldest(0); }
  int64_t end() const { return position(rows_ - 1) + 1; }

  // Writes (rows, width) unnormalised sums, then each row's largest score and the sum of its weights.
  void run(int64_t begin, int64_t end, float* partial) {
    float *sums = partial, *most = partial + (rows_ * width_), *total = most + rows_;
    std::fill_n(sums, rows_ * width_, 0.0f);
    std::fill_n(most, rows_, kLowest);
    std::fill_n(total, rows_, 0.0f);
    for (int64_t key = begin; key < end; key += kKeys) {
      const int64_t count = std::min(kKeys, end - key);
      score(key, count);
      for (int64_t r = 0; r < rows_; ++r) weigh(r, key, count, most + r, total + r, sums + (r * width_));
      values_of(a_, head_).read(key, count, keys_, width_);
      multiply({rows_, width_, count, scores_, kKeys, keys_, width_, sums, width_, true});
    }
  }

  // y from the partial results of `splits` ranges of keys, which lie one after the other.
  void finish(const float* partial, int64_t splits) {
    for (int64_t r = 0; r < rows_; ++r) {
      float most = kLowest, total = 0;
      for (int64_t s = 0; s < splits; ++s) most = std::max(most, row_most(partial, s, r));
      float* y = a_.y + at(r);
      std::fill_n(y, a_.head_dim, 0.0f);
      for (int64_t s = 0; s < splits; ++s) {
        const float* part = partial + (s * partial_size(a_, rows_));
        const float share = std::exp(row_most(partial, s, r) - most);
        total += part[(rows_ * width_) + rows_ + r] * share;
        for (int64_t i = 0; i < a_.head_dim; ++i) y[i] += part[(r * width_) + i] * share;
      }
      for (int64_t i = 0; i < a_.head_dim; ++i) y[i] /= total;
    }
  }

 private:
  int64_t position(int64_t r) const { return a_.past_length[batch_] + first_ + (r / group_); }
  int64_t oldest(int64_t r) const { return a_.window ? std::max<int64_t>(0, position(r) - a_.window + 1) : 0; }
  int64_t at(int64_t r) const {
    const int64_t token = (batch_ * a_.length) + first_ + (r / group_);
    return ((token * a_.heads) + (head_ % a_.kv_heads * group_) + (r % group_)) * a_.head_dim;
  }
  float row_most(const float* partial, int64_t split, int64_t r) const {
    return partial[(split * partial_size(a_, rows_)) + (rows_ * width_) + r];
  }

  void score(int64_t key, int64_t count) {
    keys_of(a_, head_).read(key, count, keys_, width_);
    if (rows_ < kKeys / 4) return score_row_by_row(count);
    for (int64_t i = 0; i < width_; ++i) {
      for (int64_t k = 0; k < count; ++k) by_dim_[(i * kKeys) + k] = keys_[(k * width_) + i];
      std::fill(by_dim_ + (i * kKeys) + count, by_dim_ + ((i + 1) * kKeys), 0.0f);
    }
    multiply({rows_, round_up(count, kWidth), width_, query_, width_, by_dim_, kKeys, scores_, kKeys, false});
  }

  // For a few rows, turning the keys round would cost more than the products.
  void score_row_by_row(int64_t count) {
    for (int64_t k = 0; k < count; k += kWidth) {
      const int64_t these = std::min<int64_t>(kWidth, count - k);
      for (int64_t r = 0; r < rows_; ++r) {
        Floats dots[kWidth] = {};
        for (int64_t i = 0; i < these; ++i) {
          const float *query = query_ + (r * width_), *row = keys_ + ((k + i) * width_);
          for (int64_t d = 0; d < width_; d += kWidth) dots[i] += load(query + d) * load(row + d);
        }
        store(scores_ + (r * kKeys) + k, sum_rows(dots));
      }
    }
  }

  // Scores of one row to weights relative to the row's largest score so far; what was summed before is scaled down.
  void weigh(int64_t r, int64_t key, int64_t count, float* most, float* total, float* sums) {
    float* scores = scores_ + (r * kKeys);
    const int64_t from = std::clamp<int64_t>(oldest(r) - key, 0, count);
    const int64_t to = std::clamp<int64_t>(position(r) + 1 - key, from, count);
    std::fill(scores, scores + from, kLowest);
    std::fill(scores + to, scores + kKeys, kLowest);
    if (from == to) {
      std::fill_n(scores, kKeys, 0.0f);
      return;
    }
    Floats top = splat(*most), added{};
    for (int64_t k = 0; k < kKeys; k += kWidth) top = larger(top, load(scores + k));
    const float now = largest(top), kept = std::exp(*most - now);
    for (int64_t k = 0; k < kKeys; k += kWidth) {
      const Floats weight = exp(load(scores + k) - now);
      store(scores + k, weight);
      added += weight;
    }
    *total = *total * kept + sum(added);
    *most = now;
    for (int64_t i = 0; i < width_; i += kWidth) store(sums + i, load(sums + i) * kept);
  }

  const CachedAttentionArgs& a_;
  const int64_t head_, batch_, group_, first_, rows_, width_;  // width_: head_dim up to a whole vector
  Frame frame_;
  float* query_;   // (rows, width)
  float* keys_;    // (keys, width): keys, then values
  float* by_dim_;  // (width, keys)
  float* scores_;  // (rows, keys)
};

// Keys are read in ranges that start at multiples of this many.
int64_t split_begin(int64_t begin, int64_t split) { return (begin / kSplit + split) * kSplit; }

int64_t splits_of(int64_t begin, int64_t end) { return (end + kSplit - 1) / kSplit - begin / kSplit; }

// One token per row: the keys of a row may be split among several tasks.
void step(const CachedAttentionArgs& a, const Parallel& parallel) {
  Frame frame;
  const int64_t heads = a.batch * a.kv_heads, rows = a.heads / a.kv_heads, size = Attend::partial_size(a, rows);
  int64_t most = 1;
  for (int64_t b = 0; b < a.batch; ++b) {
    const int64_t end = a.past_length[b] + 1, begin = a.window ? std::max<int64_t>(0, end - a.window) : 0;
    most = std::max(most, splits_of(begin, end));
  }
  auto* partial = frame.take<float>(heads * most * size);
  parallel(static_cast<size_t>(heads * most), [&](size_t task) {
    const int64_t head = static_cast<int64_t>(task) / most, split = static_cast<int64_t>(task) % most;
    Attend attend(a, head, 0, 1);
    const int64_t begin = attend.begin(), end = attend.end();
    if (split >= splits_of(begin, end)) return;
    attend.run(std::max(begin, split_begin(begin, split)), std::min(end, split_begin(begin, split + 1)),
               partial + (static_cast<int64_t>(task) * size));
  });
  for (int64_t head = 0; head < heads; ++head) {
    Attend attend(a, head, 0, 1);
    attend.finish(partial + (head * most * size), splits_of(attend.begin(), attend.end()));
  }
}

void prefill(const CachedAttentionArgs& a, const Parallel& parallel) {
  const int64_t together = std::max<int64_t>(1, kRows / (a.heads / a.kv_heads));
  const int64_t tasks = (a.length + together - 1) / together;
  parallel(static_cast<size_t>(a.batch * a.kv_heads * tasks), [&](size_t index) {
    const int64_t head = static_cast<int64_t>(index) / tasks, first = static_cast<int64_t>(index) % tasks * together;
    const int64_t count = std::min(together, a.length - first);
    Frame frame;
    Attend attend(a, head, first, count);
    auto* partial = frame.take<float>(Attend::partial_size(a, count * (a.heads / a.kv_heads)));
    attend.run(attend.begin(), attend.end(), partial);
    attend.finish(partial, 1);
  });
}

void check(const CachedAttentionArgs& a) {
  for (int64_t b = 0; b < a.batch; ++b) {
    if (a.past_length[b] < 0 || a.past_length[b] + a.length > a.capacity) {
      throw std::invalid_argument("CachedAttention: past_length + length, expected: 0 to the cache's capacity " +
                                  std::to_string(a.capacity) + ", found: " + std::to_string(a.past_length[b]) + " + " +
                                  std::to_string(a.length) + " in row " + std::to_string(b) +
                                  ". Give the session a larger context.");
    }
  }
}

}  // namespace

void cached_attention(const CachedAttentionArgs& args, const Parallel& parallel) {
  check(args);
  parallel(static_cast<size_t>(args.batch * args.kv_heads),
           [&](size_t head) { write_new(args, static_cast<int64_t>(head)); });
  if (args.length == 1) return step(args, parallel);
  if (args.length > 1) prefill(args, parallel);
}

}  // namespace edge::EDGE_ISA
