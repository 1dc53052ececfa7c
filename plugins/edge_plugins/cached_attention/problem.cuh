// What the attention's kernels take, and which rows and keys of it a block works on.
//
// A row is one query: of the heads that share a key head, at one position. Row t * group + g is head g of the group at
// position past_length + t, so that neighbouring rows read the same keys, and a block reads a key once for all its
// rows. The keys of a tile of rows may be split among several blocks (Flash-Decoding: Dao, Haziza, Massa and Sizov
// 2023, https://crfm.stanford.edu/2023/10/12/flashdecoding.html), whose sums lie in the workspace until combine()
// adds them in order.
#pragma once

#include <cmath>
#include <cstring>

#include "../native/device.h"

namespace edge::cuda::attention {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int kMaxHeadDim = 256;
// The largest exponent of a row that has seen no key. It is finite, so that less of it is 0 and not NaN.
constexpr float kLowest = -3.4e38f;
constexpr int kSplitKeys = 128;  // a block reads at least so many, if there are so many
constexpr int kKeyStep = 64;     // and a multiple of this

// One side of the cache. Its strides follow from the shapes.
struct Cache {
  const void* rows;     // (batch, kv_heads, capacity, head_dim)
  const float* scales;  // (batch, kv_heads, capacity), int8 only
};

// Sizes are int here: unsupported() sees to it that they fit.
struct Problem {
  Type type;  // of query and y
  int batch, length, heads, kv_heads, group, head_dim, capacity;
  int window;   // 0 is all
  float scale;  // makes scores exponents of 2
  const void* query;
  const int64_t* past_length;
  Cache keys, values;
  void* y;

  int tile_rows;          // rows of a block
  int row_tiles;          // that hold all rows
  int splits;             // blocks that share a tile's keys, at most
  float* partial_sums;    // (batch, kv_heads, splits, row_tiles * tile_rows, head_dim), used if splits > 1
  float2* partial_stats;  // (batch, kv_heads, splits, row_tiles * tile_rows): largest exponent, sum of weights

  __host__ __device__ int rows() const { return length * group; }
};

// Positions [begin, end).
struct Range {
  int begin, end;
};

__host__ __device__ inline int divide_up(int value, int by) { return (value + by - 1) / by; }

// Of batch row b. A length that the caller got wrong makes strange results, but no access outside the cache.
__device__ inline int past_length_of(const Problem& p, int b) {
  const int64_t past = p.past_length[b];
  return static_cast<int>(past < -p.length ? -p.length : past > p.capacity ? p.capacity : past);
}

// What the query of `row` sees.
__device__ inline Range keys_of_row(const Problem& p, int past, int row) {
  const int position = past + row / p.group;
  return {p.window > 0 ? max(0, position - p.window + 1) : 0, min(position + 1, p.capacity)};
}

// The part of a tile's keys that one block reads. The parts depend on the row's own length and on no other row.
struct Work {
  int batch, kv_head, first_row, past;
  Range keys;
  int split, splits;  // splits that have keys: the blocks of others have nothing to do
};

__device__ inline Work work_of(const Problem& p, int batch, int kv_head, int tile, int split) {
  Work w{batch, kv_head, tile * p.tile_rows, past_length_of(p, batch), {0, 0}, split, 1};
  const int last_row = min(w.first_row + p.tile_rows, p.rows()) - 1;
  const Range all = {keys_of_row(p, w.past, w.first_row).begin, keys_of_row(p, w.past, last_row).end};
  const int count = max(0, all.end - all.begin);
  const int each = max(kSplitKeys, divide_up(divide_up(count, p.splits), kKeyStep) * kKeyStep);
  w.splits = max(1, divide_up(count, each));
  w.keys.begin = all.begin + split * each;
  w.keys.end = min(all.end, w.keys.begin + each);
  return w;
}

// The work of this block of a grid (splits * row_tiles, kv_heads, batch).
__device__ inline Work work_of_block(const Problem& p) {
  const int split = static_cast<int>(blockIdx.x) % p.splits;
  // The last rows see the most keys: they start first, so that the end of the grid is made of small ones.
  const int tile = p.row_tiles - 1 - static_cast<int>(blockIdx.x) / p.splits;
  return work_of(p, static_cast<int>(blockIdx.z), static_cast<int>(blockIdx.y), tile, split);
}

// Where the head_dim numbers of a row begin in query and y.
__device__ inline size_t offset_of(const Problem& p, const Work& w, int row) {
  const size_t token = static_cast<size_t>(w.batch) * p.length + row / p.group;
  return (token * p.heads + w.kv_head * p.group + row % p.group) * p.head_dim;
}

// Where the rows of the work's key head begin, in rows of the cache.
__device__ inline size_t cache_row_of(const Problem& p, const Work& w) {
  return (static_cast<size_t>(w.batch) * p.kv_heads + w.kv_head) * p.capacity;
}

// Where the sums of a row begin, in rows of the workspace.
__device__ inline size_t partial_row_of(const Problem& p, const Work& w, int split, int row) {
  const size_t part = (static_cast<size_t>(w.batch) * p.kv_heads + w.kv_head) * p.splits + split;
  return part * p.row_tiles * p.tile_rows + row;
}

__device__ inline float load_activation(Type type, const void* x, size_t i) {
  if (type == Type::kFloat32) return static_cast<const float*>(x)[i];
  if (type == Type::kFloat16) return to_float(static_cast<const float16*>(x)[i]);
  return to_float(static_cast<const bfloat16*>(x)[i]);
}

__device__ inline void store_activation(Type type, void* y, size_t i, float value) {
  if (type == Type::kFloat32) {
    static_cast<float*>(y)[i] = value;
  } else if (type == Type::kFloat16) {
    static_cast<float16*>(y)[i] = from_float<float16>(value);
  } else {
    static_cast<bfloat16*>(y)[i] = from_float<bfloat16>(value);
  }
}

// 1 / total, or 0 for a row that saw no key.
__device__ inline float share_of(float total) { return total == 0 ? 0.0f : 1 / total; }

// Writes the result of one row: to y, or to the workspace if other blocks read more of its keys.
class RowResult {
 public:
  // largest: the row's largest exponent; total: the sum of its weights relative to that. One lane of those that write
  // the row is the `first`.
  __device__ RowResult(const Problem& p, const Work& w, int row, float largest, float total, bool first)
      : type_(p.type) {
    if (w.splits == 1) {
      y_ = p.y;
      at_ = offset_of(p, w, row);
      share_ = share_of(total);
      return;
    }
    const size_t partial_row = partial_row_of(p, w, w.split, row);
    sums_ = p.partial_sums + partial_row * p.head_dim;
    if (first) p.partial_stats[partial_row] = make_float2(largest, total);
  }

  __device__ void write(int d, float sum) {
    if (sums_ != nullptr) {
      sums_[d] = sum;
    } else {
      store_activation(type_, y_, at_ + d, sum * share_);
    }
  }

  // Elements d and d + 1 of activations of two bytes; d and head_dim are even.
  __device__ void write_pair(int d, float first, float second) {
    if (sums_ != nullptr) {
      *reinterpret_cast<float2*>(sums_ + d) = make_float2(first, second);
    } else {
      first *= share_;
      second *= share_;
      *reinterpret_cast<uint32_t*>(static_cast<uint16_t*>(y_) + at_ + d) =
          type_ == Type::kFloat16 ? pack<float16>(first, second) : pack<bfloat16>(first, second);
    }
  }

 private:
  Type type_;
  void* y_ = nullptr;
  float* sums_ = nullptr;
  size_t at_ = 0;
  float share_ = 0;
};

}  // namespace edge::cuda::attention
