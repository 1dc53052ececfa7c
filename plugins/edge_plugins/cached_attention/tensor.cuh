// Attention on tensor cores: float16 or bfloat16 activations, float16 or int8 caches, head sizes of whole sixteens.
//
// FlashAttention-2 (Dao 2023, arXiv 2307.08691, algorithm 1): a block keeps a tile of rows, walks over the keys in
// tiles that the next copy overlaps, and never writes scores to memory. With few rows (decode) the warps of a block
// share out the keys of a tile, with many (prefill) the rows: a weight or score never leaves its warp's registers.
//
// What is multiplied is float16, with bfloat16 activations too: a float16 cache then needs no conversion, and of the
// eleven bits of keys, values and weights none is lost. (In bfloat16 they would have eight.) Queries, keys and values
// beyond 65504 count as infinite. Keys in int8 are multiplied as the integers that they are, and scores take their
// scales; values are scaled and rounded.
#pragma once

#include "tensor_layout.cuh"

namespace edge::cuda::attention {

template <class C, int kHeadDim, bool kDecode>
class TensorAttention {
 public:
  __device__ TensorAttention(const Problem& p, const Work& w, unsigned char* memory) : p_(p), w_(w), memory_(memory) {
    lane_ = static_cast<int>(threadIdx.x) % kWarp;
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    warp_row_ = warp % D::kRowWarps * D::kWarpRows;
    key_warp_ = warp / D::kRowWarps;
    query_.memory = memory + Layout::kQuery;
    EDGE_UNROLL
    for (int m = 0; m < D::kRowTiles; ++m) largest_[m][0] = largest_[m][1] = kLowest;
  }

  __device__ void run() {
    load_query();
    if (w_.keys.begin < w_.keys.end) start_copy(w_.keys.begin, 0);
    int stage = 0;
    for (int begin = w_.keys.begin; begin < w_.keys.end; begin += D::kKeys, stage ^= 1) {
      wait_async<0>();
      __syncthreads();  // the tile is here, and the last one has been read
      if (begin + D::kKeys < w_.keys.end) start_copy(begin + D::kKeys, stage ^ 1);
      if constexpr (Layout::kConverts) {
        convert(stage);
        __syncthreads();
      }
      take_keys(begin + key_warp_ * D::kWarpKeys, stage);
    }
    if constexpr (D::kKeyWarps > 1) {
      write_merged();
    } else {
      write();
    }
  }

 private:
  using D = Division<kHeadDim, kDecode>;
  using Layout = SharedLayout<C, kHeadDim, kDecode>;
  using Operand = typename Layout::Operand;
  static constexpr int kSteps = kHeadDim / 16;
  static constexpr int kKeyTiles = D::kWarpKeys / 16;

  // The row of the problem that this lane's elements 2 * half and 2 * half + 1 of tile m are of.
  __device__ int row(int m, int half) const { return w_.first_row + warp_row_ + m * 16 + half * 8 + lane_ / 4; }

  // ---- Into shared memory ----

  // Rows beyond the last, and dimensions beyond head_dim, are 0.
  __device__ void load_query() const {
    constexpr int kChunks = kHeadDim / 8;
    EDGE_ROLL
    for (int i = static_cast<int>(threadIdx.x); i < D::kTileRows * kChunks; i += kThreads) {
      const int row = w_.first_row + i / kChunks, d = i % kChunks * 8;
      uint4 eight = make_uint4(0, 0, 0, 0);
      if (row < p_.rows() && d < p_.head_dim) {
        eight = *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(p_.query) + offset_of(p_, w_, row) + d);
        if (p_.type == Type::kBfloat16) {
          eight = make_uint4(narrowed(eight.x), narrowed(eight.y), narrowed(eight.z), narrowed(eight.w));
        }
      }
      *reinterpret_cast<uint4*>(query_.at(i / kChunks, d)) = eight;
    }
  }

  __device__ static uint32_t narrowed(uint32_t pair) {
    const float2 two = unpack<bfloat16>(pair);
    return pack<float16>(two.x, two.y);
  }

  __device__ typename Layout::Stored stored(int stage, int part) const {
    return {memory_ + stage * Layout::kStageBytes + part * Layout::Stored::kBytes};
  }

  // (2, kKeys): of keys, of values.
  __device__ float* scales(int stage) const {
    return reinterpret_cast<float*>(memory_ + stage * Layout::kStageBytes + 2 * Layout::Stored::kBytes);
  }

  __device__ Operand operand(int stage, int part) const {
    return {Layout::kConverts ? memory_ + Layout::kOperands + part * Operand::kBytes : stored(stage, part).memory};
  }

  __device__ void start_copy(int begin, int stage) const {
    const size_t cache_row = cache_row_of(p_, w_);
    EDGE_UNROLL
    for (int part = 0; part < 2; ++part) {
      const Cache& cache = part == 0 ? p_.keys : p_.values;
      const C* rows = static_cast<const C*>(cache.rows) + cache_row * p_.head_dim;
      stored(stage, part).copy_from(rows, p_.head_dim, begin, w_.keys.end);
      if constexpr (Layout::kConverts) {
        for (int key = static_cast<int>(threadIdx.x); key < D::kKeys; key += kThreads) {
          const bool held = begin + key < w_.keys.end;
          const float* from = cache.scales + cache_row;
          copy_async_float(scales(stage) + part * D::kKeys + key, held ? from + begin + key : from, held);
        }
      }
    }
    commit_async();
  }

  // Integers to float16: keys as they are, values times their scales.
  __device__ void convert(int stage) const {
    constexpr int kChunks = kHeadDim / 16;
    EDGE_ROLL
    for (int i = static_cast<int>(threadIdx.x); i < 2 * D::kKeys * kChunks; i += kThreads) {
      const int part = i / (D::kKeys * kChunks), key = i / kChunks % D::kKeys, d = i % kChunks * 16;
      const float scale = part == 0 ? 1.0f : scales(stage)[D::kKeys + key];
      const uint4 raw = *reinterpret_cast<const uint4*>(stored(stage, part).at(key, d));
      int8_t integers[16];
      std::memcpy(integers, &raw, sizeof integers);
      uint32_t pairs[8];
      EDGE_UNROLL
      for (int j = 0; j < 8; ++j) {
        pairs[j] = pack<float16>(to_float(integers[2 * j]) * scale, to_float(integers[2 * j + 1]) * scale);
      }
      auto* to = reinterpret_cast<uint4*>(operand(stage, part).at(key, d));
      to[0] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
      to[1] = make_uint4(pairs[4], pairs[5], pairs[6], pairs[7]);
    }
  }

  // ---- One tile of keys ----

  // This warp's keys: those at positions begin to begin + kWarpKeys - 1.
  __device__ void take_keys(int begin, int stage) {
    const int first = w_.first_row + warp_row_, last = min(first + D::kWarpRows, p_.rows()) - 1;
    if (first > last) return;  // the whole warp
    const Range of_first = keys_of_row(p_, w_.past, first), of_last = keys_of_row(p_, w_.past, last);
    const int end = begin + D::kWarpKeys;
    if (end <= of_first.begin || begin >= of_last.end) return;
    const bool all_visible = begin >= of_last.begin && end <= of_first.end;
    float scores[D::kRowTiles][2 * kKeyTiles][4] = {};
    score(scores, stage);
    uint32_t weights[kKeyTiles][D::kRowTiles][4];
    weigh(scores, weights, begin, all_visible, stage);
    add_values(weights, stage);
  }

  // scores (rows, keys) = query key^T
  __device__ void score(float (&scores)[D::kRowTiles][2 * kKeyTiles][4], int stage) const {
    const Operand keys = operand(stage, 0);
    const int key = key_warp_ * D::kWarpKeys + lane_ % 8 + lane_ / 16 * 8;
    EDGE_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      uint32_t query[D::kRowTiles][4];
      EDGE_UNROLL
      for (int m = 0; m < D::kRowTiles; ++m) {
        load_matrices(query[m], query_.at(warp_row_ + m * 16 + lane_ % 16, step * 16 + lane_ / 16 * 8));
      }
      EDGE_UNROLL
      for (int n = 0; n < kKeyTiles; ++n) {
        uint32_t both[4];
        load_matrices(both, keys.at(key + n * 16, step * 16 + lane_ / 8 % 2 * 8));
        multiply_pair(scores, 2 * n, query, both);
      }
    }
  }

  // Adds to sixteen columns, of which tiles n and n + 1 hold eight each.
  template <int kTiles>
  __device__ static void multiply_pair(float (&sums)[D::kRowTiles][kTiles][4], int n,
                                       const uint32_t (&left)[D::kRowTiles][4], const uint32_t (&right)[4]) {
    const uint32_t low[2] = {right[0], right[1]}, high[2] = {right[2], right[3]};
    EDGE_UNROLL
    for (int m = 0; m < D::kRowTiles; ++m) {
      mma_16x8x16<float16>(sums[m][n], left[m], low);
      mma_16x8x16<float16>(sums[m][n + 1], left[m], high);
    }
  }

  // Scores to weights relative to each row's largest score so far, in the layout of a left operand; what was added up
  // before is scaled down.
  __device__ void weigh(float (&scores)[D::kRowTiles][2 * kKeyTiles][4],
                        uint32_t (&weights)[kKeyTiles][D::kRowTiles][4], int begin, bool all_visible, int stage) {
    scale_and_mask(scores, begin, all_visible, stage);
    EDGE_UNROLL
    for (int m = 0; m < D::kRowTiles; ++m) {
      EDGE_UNROLL
      for (int half = 0; half < 2; ++half) weigh_row(scores[m], m, half);
      EDGE_UNROLL
      for (int k = 0; k < kKeyTiles; ++k) {
        EDGE_UNROLL
        for (int i = 0; i < 4; ++i) {
          const float(&tile)[4] = scores[m][2 * k + i / 2];
          weights[k][m][i] = pack<float16>(tile[i % 2 * 2], tile[i % 2 * 2 + 1]);
        }
      }
    }
  }

  __device__ void scale_and_mask(float (&scores)[D::kRowTiles][2 * kKeyTiles][4], int begin, bool all_visible,
                                 int stage) const {
    const int column = lane_ % 4 * 2;
    EDGE_UNROLL
    for (int n = 0; n < 2 * kKeyTiles; ++n) {
      EDGE_UNROLL
      for (int i = 0; i < 4; ++i) {
        float scale = p_.scale;
        if constexpr (Layout::kConverts) {
          scale *= scales(stage)[key_warp_ * D::kWarpKeys + n * 8 + column + i % 2];
        }
        EDGE_UNROLL
        for (int m = 0; m < D::kRowTiles; ++m) scores[m][n][i] *= scale;
      }
    }
    if (all_visible) return;
    EDGE_UNROLL
    for (int m = 0; m < D::kRowTiles; ++m) {
      EDGE_UNROLL
      for (int half = 0; half < 2; ++half) {
        const Range seen = keys_of_row(p_, w_.past, row(m, half));
        EDGE_UNROLL
        for (int n = 0; n < 2 * kKeyTiles; ++n) {
          EDGE_UNROLL
          for (int i = 0; i < 2; ++i) {
            const int key = begin + n * 8 + column + i;
            const bool visible = key >= seen.begin && key < seen.end;
            if (!visible) scores[m][n][2 * half + i] = -INFINITY;
          }
        }
      }
    }
  }

  // Four lanes have the row that is this lane's half of tile m.
  __device__ void weigh_row(float (&scores)[2 * kKeyTiles][4], int m, int half) {
    float largest = largest_[m][half];
    EDGE_UNROLL
    for (int n = 0; n < 2 * kKeyTiles; ++n) {
      largest = fmaxf(largest, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
    }
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2));
    const float kept = fast_exp2(largest_[m][half] - largest);
    largest_[m][half] = largest;
    float added = 0;
    EDGE_UNROLL
    for (int n = 0; n < 2 * kKeyTiles; ++n) {
      EDGE_UNROLL
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        scores[n][i] = fast_exp2(scores[n][i] - largest);
        added += scores[n][i];
      }
    }
    total_[m][half] = total_[m][half] * kept + added;
    EDGE_UNROLL
    for (int n = 0; n < kHeadDim / 8; ++n) {
      sums_[m][n][2 * half] *= kept;
      sums_[m][n][2 * half + 1] *= kept;
    }
  }

  // sums (rows, head_dim) += weights value
  __device__ void add_values(const uint32_t (&weights)[kKeyTiles][D::kRowTiles][4], int stage) {
    const Operand values = operand(stage, 1);
    const int key = key_warp_ * D::kWarpKeys + lane_ % 16;
    EDGE_UNROLL
    for (int k = 0; k < kKeyTiles; ++k) {
      EDGE_UNROLL
      for (int n = 0; n < kSteps; ++n) {
        uint32_t both[4];
        load_matrices_transposed(both, values.at(key + k * 16, n * 16 + lane_ / 16 * 8));
        multiply_pair(sums_, 2 * n, weights[k], both);
      }
    }
  }

  // ---- Results ----

  __device__ float whole_total(int m, int half) const {
    float total = total_[m][half];
    total += __shfl_xor_sync(kAllLanes, total, 1);
    return total + __shfl_xor_sync(kAllLanes, total, 2);
  }

  // Every warp has rows of its own.
  __device__ void write() const {
    EDGE_UNROLL
    for (int m = 0; m < D::kRowTiles; ++m) {
      EDGE_UNROLL
      for (int half = 0; half < 2; ++half) {
        const float total = whole_total(m, half);
        if (row(m, half) >= p_.rows()) continue;
        RowResult result(p_, w_, row(m, half), largest_[m][half], total, lane_ % 4 == 0);
        EDGE_UNROLL
        for (int n = 0; n < kHeadDim / 8; ++n) {
          const int d = n * 8 + lane_ % 4 * 2;
          if (d < p_.head_dim) result.write_pair(d, sums_[m][n][2 * half], sums_[m][n][2 * half + 1]);
        }
      }
    }
  }

  // The warps of one row have its sums over different keys.
  __device__ void write_merged() {
    auto* sums = reinterpret_cast<float*>(memory_);                     // (kKeyWarps, kTileRows, kSumStride)
    auto* stats = reinterpret_cast<float2*>(memory_ + Layout::kStats);  // (kKeyWarps, kTileRows)
    __syncthreads();
    EDGE_UNROLL
    for (int half = 0; half < 2; ++half) {
      const float total = whole_total(0, half);
      const int at = key_warp_ * D::kTileRows + warp_row_ + half * 8 + lane_ / 4;
      if (lane_ % 4 == 0) stats[at] = make_float2(largest_[0][half], total);
      EDGE_UNROLL
      for (int n = 0; n < kHeadDim / 8; ++n) {
        *reinterpret_cast<float2*>(sums + at * Layout::kSumStride + n * 8 + lane_ % 4 * 2) =
            make_float2(sums_[0][n][2 * half], sums_[0][n][2 * half + 1]);
      }
    }
    __syncthreads();
    const int rows = min(D::kTileRows, p_.rows() - w_.first_row);
    for (int r = static_cast<int>(threadIdx.x) / kWarp; r < rows; r += kWarps) merge_row(sums, stats, r);
  }

  // One warp.
  __device__ void merge_row(const float* sums, const float2* stats, int r) const {
    float largest = kLowest, total = 0, shares[D::kKeyWarps];
    EDGE_UNROLL
    for (int k = 0; k < D::kKeyWarps; ++k) largest = fmaxf(largest, stats[k * D::kTileRows + r].x);
    EDGE_UNROLL
    for (int k = 0; k < D::kKeyWarps; ++k) {
      const float2 part = stats[k * D::kTileRows + r];
      shares[k] = fast_exp2(part.x - largest);
      total += part.y * shares[k];
    }
    RowResult result(p_, w_, w_.first_row + r, largest, total, lane_ == 0);
    for (int d = 2 * lane_; d < p_.head_dim; d += 2 * kWarp) {
      float first = 0, second = 0;
      EDGE_UNROLL
      for (int k = 0; k < D::kKeyWarps; ++k) {
        const float* part = sums + (k * D::kTileRows + r) * Layout::kSumStride + d;
        first += part[0] * shares[k];
        second += part[1] * shares[k];
      }
      result.write_pair(d, first, second);
    }
  }

  const Problem& p_;
  const Work& w_;
  unsigned char* memory_;
  int lane_, warp_row_, key_warp_;
  typename Layout::Query query_;
  // Of this lane's rows; sums in the layout of a product's result.
  float largest_[D::kRowTiles][2];
  float total_[D::kRowTiles][2] = {};  // of this lane's keys
  float sums_[D::kRowTiles][kHeadDim / 8][4] = {};
};

// A grid (splits * row_tiles, kv_heads, batch).
template <class C, int kHeadDim, bool kDecode>
__global__ void __launch_bounds__(kThreads, 2) attend_tensor(Problem p) {
  EDGE_SHARED(memory);
  const Work w = work_of_block(p);
  if (w.split >= w.splits) return;
  TensorAttention<C, kHeadDim, kDecode>(p, w, memory).run();
}

}  // namespace edge::cuda::attention
