// Attention without tensor cores: float32 activations, float32 caches and head sizes that are no multiple of 16.
//
// Float32 caches stay here even beside narrow activations: who asks for one asks for exactness, and in stages for
// tensor cores it would not fit the shared memory of every GPU.
//
// All in float32. A lane has one key of a tile while scores are computed, and some of the head's dimensions while
// values are added up; softmax is online (Milakov and Gimelshein 2018, arXiv 1805.02867). A block waits for its copies:
// several blocks share a multiprocessor, and compute meanwhile.
#pragma once

#include "cache_tile.cuh"

namespace edge::cuda::attention {

template <class C, int kHeadDim>
class VectorAttention {
 public:
  static constexpr int kKeys = kWarp;
  static_assert(kKeyStep % kKeys == 0, "a tile is part of one split");
  static constexpr int kWarpRows = 4;
  static constexpr int kTileRows = kWarps * kWarpRows;
  static constexpr int kSharedBytes = 2 * CacheTile<C, kHeadDim, kKeys>::kBytes +
                                      kTileRows * kHeadDim * static_cast<int>(sizeof(float)) +
                                      kThreads * static_cast<int>(sizeof(float4));

  __device__ VectorAttention(const Problem& p, const Work& w, unsigned char* memory) : p_(p), w_(w) {
    lane_ = static_cast<int>(threadIdx.x) % kWarp;
    warp_ = static_cast<int>(threadIdx.x) / kWarp;
    keys_.memory = memory;
    values_.memory = keys_.memory + Tile::kBytes;
    query_ = reinterpret_cast<float*>(values_.memory + Tile::kBytes);
    weights_ = reinterpret_cast<float4*>(query_ + kTileRows * kHeadDim) + warp_ * kWarp;
  }

  __device__ void run() {
    load_query();
    const size_t cache_row = cache_row_of(p_, w_);
    const C* keys = static_cast<const C*>(p_.keys.rows) + cache_row * p_.head_dim;
    const C* values = static_cast<const C*>(p_.values.rows) + cache_row * p_.head_dim;
    for (int begin = w_.keys.begin; begin < w_.keys.end; begin += kKeys) {
      __syncthreads();  // the last tile has been read
      keys_.copy_from(keys, p_.head_dim, begin, w_.keys.end);
      values_.copy_from(values, p_.head_dim, begin, w_.keys.end);
      commit_async();
      wait_async<0>();
      __syncthreads();
      weigh(begin + lane_, cache_row);
      __syncwarp();
      add_values();
    }
    EDGE_UNROLL
    for (int i = 0; i < kWarpRows; ++i) write(i);
  }

 private:
  using Tile = CacheTile<C, kHeadDim, kKeys>;
  static constexpr int kDims = kHeadDim / kWarp;  // of a lane: lane, lane + 32, ...
  static constexpr int kChunk = 16 / static_cast<int>(sizeof(C));

  // A warp's rows lie kWarps apart, so that few rows are shared out evenly.
  __device__ int tile_row(int i) const { return i * kWarps + warp_; }

  // (kTileRows, kHeadDim), scaled; 0 beyond the last row and head_dim.
  __device__ void load_query() {
    for (int i = static_cast<int>(threadIdx.x); i < kTileRows * kHeadDim; i += kThreads) {
      const int row = w_.first_row + i / kHeadDim, d = i % kHeadDim;
      const bool used = row < p_.rows() && d < p_.head_dim;
      query_[i] = used ? load_activation(p_.type, p_.query, offset_of(p_, w_, row) + d) * p_.scale : 0.0f;
    }
  }

  // The scores of this lane's key.
  __device__ void score(float (&scores)[kWarpRows]) const {
    for (int d = 0; d < p_.head_dim; d += kChunk) {
      alignas(16) C key[kChunk];
      const uint4 raw = *reinterpret_cast<const uint4*>(keys_.at(lane_, d));
      std::memcpy(key, &raw, sizeof key);
      EDGE_UNROLL
      for (int i = 0; i < kWarpRows; ++i) {
        const float* query = query_ + tile_row(i) * kHeadDim + d;
        EDGE_UNROLL
        for (int c = 0; c < kChunk; ++c) scores[i] += query[c] * to_float(key[c]);
      }
    }
  }

  // From the key at `position` to its weights in weights_; what was added up before is scaled down.
  __device__ void weigh(int position, size_t cache_row) {
    float scores[kWarpRows] = {}, weights[kWarpRows];
    score(scores);
    float key_scale = 1, value_scale = 1;
    if constexpr (sizeof(C) == 1) {
      const bool held = position < w_.keys.end;
      key_scale = held ? p_.keys.scales[cache_row + position] : 0.0f;
      value_scale = held ? p_.values.scales[cache_row + position] : 0.0f;
    }
    EDGE_UNROLL
    for (int i = 0; i < kWarpRows; ++i) {
      const Range seen = keys_of_row(p_, w_.past, w_.first_row + tile_row(i));
      const bool visible = position >= seen.begin && position < seen.end;
      const float exponent = visible ? scores[i] * key_scale : -INFINITY;
      float largest = exponent;
      for (int mask = kWarp / 2; mask > 0; mask /= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, mask));
      }
      largest = fmaxf(largest, largest_[i]);
      const float kept = fast_exp2(largest_[i] - largest), weight = fast_exp2(exponent - largest);
      largest_[i] = largest;
      total_[i] = total_[i] * kept + weight;
      weights[i] = weight * value_scale;
      EDGE_UNROLL
      for (int j = 0; j < kDims; ++j) sums_[i][j] *= kept;
    }
    weights_[lane_] = make_float4(weights[0], weights[1], weights[2], weights[3]);
  }

  __device__ void add_values() {
    for (int key = 0; key < kKeys; ++key) {
      const float4 weights = weights_[key];
      EDGE_UNROLL
      for (int j = 0; j < kDims; ++j) {
        const float value = to_float(*reinterpret_cast<const C*>(values_.at(key, lane_ + j * kWarp)));
        sums_[0][j] += weights.x * value;
        sums_[1][j] += weights.y * value;
        sums_[2][j] += weights.z * value;
        sums_[3][j] += weights.w * value;
      }
    }
  }

  __device__ void write(int i) {
    const float total = warp_sum(total_[i]);
    const int row = w_.first_row + tile_row(i);
    if (row >= p_.rows()) return;  // the whole warp, and with it all later rows
    RowResult result(p_, w_, row, largest_[i], total, lane_ == 0);
    EDGE_UNROLL
    for (int j = 0; j < kDims; ++j) {
      if (lane_ + j * kWarp < p_.head_dim) result.write(lane_ + j * kWarp, sums_[i][j]);
    }
  }

  const Problem& p_;
  const Work& w_;
  int lane_, warp_;
  Tile keys_, values_;
  float* query_;     // (kTileRows, kHeadDim)
  float4* weights_;  // (kKeys): of the warp's rows
  float sums_[kWarpRows][kDims] = {};
  float largest_[kWarpRows] = {kLowest, kLowest, kLowest, kLowest};
  float total_[kWarpRows] = {};  // of this lane's keys
};

// A grid (splits * row_tiles, kv_heads, batch).
template <class C, int kHeadDim>
__global__ void __launch_bounds__(kThreads, 3) attend_vector(Problem p) {
  EDGE_SHARED(memory);
  const Work w = work_of_block(p);
  if (w.split >= w.splits) return;
  VectorAttention<C, kHeadDim>(p, w, memory).run();
}

}  // namespace edge::cuda::attention
