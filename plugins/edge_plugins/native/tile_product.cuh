// Many rows times a weight, on tensor cores: what prefill does.
//
// A block multiplies a tile of rows of one matrix with 128 of its columns. Rows and weights go to shared memory as they
// are stored, by asynchronous copies three steps deep; a warp has 32 of the columns and all of the rows, so that a
// weight is unpacked once for a tile. Sums over 32 inputs, which share a scale, are scaled and added in float32.
#pragma once

#include "product_inputs.cuh"
#include "row_tiles.cuh"
#include "weight_fragments.cuh"

namespace edge::cuda {

constexpr int kTileThreads = 128;
constexpr int kTileColumns = 128;
constexpr int kTileStep = 32;  // inputs
constexpr int kTileStages = 3;
constexpr int kRowsOfOrder = 8;  // row tiles that follow each other before the next columns: they share weights in L2

// A stage of the pipeline in shared memory. Rows are 16 bytes longer than what they hold, which keeps lanes that read
// a column of them in different banks.
template <class Stored, int kRows>
struct TileStage {
  static constexpr int kInputPitch = kTileStep * 2 + 16;
  static constexpr int kWeightRow = kTileColumns * kBitsOf<Stored> / 8;
  static constexpr int kWeightPitch = kWeightRow + 16;
  static constexpr int kInputBytes = kRows * kInputPitch;
  static constexpr int kBytes = kInputBytes + kTileStep * kWeightPitch;
};

// The weight's columns that a block multiplies. If gated, half of them are gates, half the values that they meet.
struct TileColumns {
  int first;
  int per_half;  // kTileColumns if not gated
  int half;      // the weight's columns in a half

  __device__ int at(int column) const { return column < per_half ? first + column : half + first + column - per_half; }
  __device__ bool has(int column) const { return first + column % per_half < half; }
};

struct TilePlace {
  int row_tile;
  int column_tile;
};

// Which tile a block has: 8 row tiles for the first columns, the same 8 for the next, and so on.
__device__ inline TilePlace place_of_block(int row_tiles, int column_tiles) {
  const int index = static_cast<int>(blockIdx.x), group = kRowsOfOrder * column_tiles;
  const int first = index / group * kRowsOfOrder, rows = min(kRowsOfOrder, row_tiles - first);
  return {first + index % group % rows, index % group / rows};
}

// What a thread copies of every step: 16 bytes of some rows of inputs and of some rows of weights.
template <class T, class Stored, int kRows>
struct TileCopy {
  using Stage = TileStage<Stored, kRows>;
  static constexpr int kInputParts = kTileStep / 8;  // of 16 bytes in a row
  static constexpr int kInputRows = (kRows * kInputParts + kTileThreads - 1) / kTileThreads;
  static constexpr int kWeightParts = Stage::kWeightRow / 16;
  static constexpr int kWeightGap = kTileThreads / kWeightParts;  // rows between those of a thread

  __device__ TileCopy(const RowTile& tile, const Weight& weight, const TileColumns& columns, const T* x,
                      const int32_t* source)
      : thread(static_cast<int>(threadIdx.x)), in(static_cast<int>(weight.in)) {
    EDGE_UNROLL
    for (int i = 0; i < kInputRows; ++i) {
      const int row = (thread + i * kTileThreads) / kInputParts;
      has_row[i] = row < tile.count;
      const int at = tile.first + (has_row[i] ? row : 0);
      inputs[i] = x + (static_cast<int64_t>(source == nullptr ? at : source[at]) * in);
    }
    const int column = thread % kWeightParts * (kTileColumns / kWeightParts), out = static_cast<int>(weight.out);
    has_column = columns.has(column);
    row_bytes = static_cast<int>(weight.out * kBitsOf<Stored> / 8);
    weights = element<Stored>(weight.values, tile.matrix * weight.in, out, has_column ? columns.at(column) : 0);
  }

  __device__ void start(unsigned char* stage, int step) const {
    EDGE_UNROLL
    for (int i = 0; i < kInputRows; ++i) {
      const int part = thread + i * kTileThreads, k = step * kTileStep + part % kInputParts * 8;
      const bool valid = has_row[i] && k < in;
      if (part < kRows * kInputParts) {
        unsigned char* to = stage + (part / kInputParts * Stage::kInputPitch) + (part % kInputParts * 16);
        copy_async(to, inputs[i] + (valid ? k : 0), valid);
      }
    }
    EDGE_UNROLL
    for (int i = 0; i < kTileStep / kWeightGap; ++i) {
      const int row = thread / kWeightParts + i * kWeightGap, k = step * kTileStep + row;
      const bool valid = has_column && k < in;
      unsigned char* to = stage + Stage::kInputBytes + (row * Stage::kWeightPitch) + (thread % kWeightParts * 16);
      copy_async(to, weights + (valid ? static_cast<int64_t>(k) * row_bytes : 0), valid);
    }
  }

  const int thread, in;
  const T* inputs[kInputRows];
  bool has_row[kInputRows];
  const unsigned char* weights;
  bool has_column;
  int row_bytes;
};

// The scales of a lane's four outputs in one step.
template <class Stored>
__device__ inline float4 load_scales(int step, const RowTile& tile, const Weight& weight, const TileColumns& columns,
                                     int column) {
  if (!kIsInteger<Stored> || !columns.has(column)) return make_float4(0, 0, 0, 0);
  const int block = step * kTileStep / static_cast<int>(weight.block);
  const int64_t row = tile.matrix * (weight.in / weight.block) + block;
  return *reinterpret_cast<const float4*>(weight.scales + (row * weight.out + columns.at(column)));
}

// sums += a stage's product, 32 columns of the warp by all rows: two products of 16 outputs, kRows / 8 of 8 rows.
template <class T, class Stored, int kRows>
__device__ inline void multiply_stage(const unsigned char* stage, const float4& scales,
                                      float (&sums)[2][kRows / 8][4]) {
  using Stage = TileStage<Stored, kRows>;
  constexpr int kSteps = kTileStep / 16, kBytes = 4 * kBitsOf<Stored> / 8;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  uint32_t left[kSteps][2][4];
  const unsigned char* weights = stage + Stage::kInputBytes + ((warp * 32 + lane / 4 * 4) * kBitsOf<Stored> / 8);
  EDGE_UNROLL
  for (int step = 0; step < kSteps; ++step) {
    uint32_t rows[4][(kBytes + 3) / 4];
    EDGE_UNROLL
    for (int j = 0; j < 4; ++j) {
      load_bytes<kBytes>(rows[j], weights + ((16 * step + operand_row(lane, j)) * Stage::kWeightPitch));
    }
    left_operands<T, Stored>(rows, 0, left[step]);
  }
  const unsigned char* inputs = stage + ((lane / 16 * 8 + lane % 8) * Stage::kInputPitch) + (lane / 8 % 2 * 16);
  EDGE_UNROLL
  for (int sixteen = 0; sixteen < kRows / 16; ++sixteen) {
    float parts[2][2][4] = {};
    EDGE_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      uint32_t right[4];
      load_matrices(right, inputs + (16 * sixteen * Stage::kInputPitch) + (32 * step));
      EDGE_UNROLL
      for (int eight = 0; eight < 2; ++eight) {
        const uint32_t pair[2] = {right[2 * eight], right[2 * eight + 1]};
        EDGE_UNROLL
        for (int i = 0; i < 2; ++i) {
          mma_16x8x16<T>(kIsInteger<Stored> ? parts[i][eight] : sums[i][2 * sixteen + eight], left[step][i], pair);
        }
      }
    }
    if constexpr (kIsInteger<Stored>) {
      EDGE_UNROLL
      for (int eight = 0; eight < 2; ++eight) {
        add_scaled(sums[0][2 * sixteen + eight], parts[0][eight], scales.x, scales.y);
        add_scaled(sums[1][2 * sixteen + eight], parts[1][eight], scales.z, scales.w);
      }
    }
  }
}

// Where two neighbouring columns of a row stand in shared memory, in pairs of floats: rows are turned against each
// other, so that neither what a warp holds, 4 rows by 4 pairs at a time, nor a row's pairs meet in a bank.
__device__ inline int place_of_pair(int row, int pair) {
  constexpr int kPairs = kTileColumns / 2;
  return row * kPairs + (pair + row / 2 % 2 * 8 + row / 4 % 2) % kPairs;
}

// By way of shared memory, where a row's columns stand together and gates meet their values, to y (rows, width).
template <class T, int kRows>
__device__ inline void store_tile(const float (&sums)[2][kRows / 8][4], unsigned char* memory, const RowTile& tile,
                                  const TileColumns& columns, Activation activation, T* y) {
  auto* staged = reinterpret_cast<float2*>(memory);
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  __syncthreads();
  EDGE_UNROLL
  for (int i = 0; i < 2; ++i) {
    EDGE_UNROLL
    for (int eight = 0; eight < kRows / 8; ++eight) {
      EDGE_UNROLL
      for (int j = 0; j < 2; ++j) {
        const int row = 8 * eight + lane % 4 * 2 + j, pair = warp * 16 + lane / 4 * 2 + i;
        staged[place_of_pair(row, pair)] = make_float2(sums[i][eight][j], sums[i][eight][j + 2]);
      }
    }
  }
  __syncthreads();
  const int pairs = columns.per_half / 2;
  for (int at = static_cast<int>(threadIdx.x); at < tile.count * pairs; at += kTileThreads) {
    const int row = at / pairs, pair = at % pairs;
    if (!columns.has(2 * pair)) continue;
    const float2 gate = staged[place_of_pair(row, pair)];
    const float2 value = pairs == kTileColumns / 2 ? gate : staged[place_of_pair(row, pairs + pair)];
    T* to = y + (static_cast<int64_t>(tile.first + row) * columns.half) + columns.first + 2 * pair;
    *reinterpret_cast<uint32_t*>(to) =
        pack<T>(activate(activation, value.x, gate.x), activate(activation, value.y, gate.y));
  }
}

template <class Stored, int kRows>
constexpr size_t tile_bytes() {
  return std::max(static_cast<size_t>(kTileStages * TileStage<Stored, kRows>::kBytes),
                  kRows * kTileColumns * sizeof(float));
}

// Grid: row tiles times column tiles. Shared memory: tile_bytes(). Bounds: with the sums of a scale's inputs beside
// those of all, a third block on a multiprocessor would cost spills.
template <class T, class Stored, int kRows>
__global__ void __launch_bounds__(kTileThreads, kRows == 64 && kIsInteger<Stored> ? 2 : 3)
    tile_product(RowGroups groups, Weight weight, const T* x, const int32_t* source, Activation activation, T* y,
                 int row_tiles, int column_tiles) {
  EDGE_SHARED(memory);
  constexpr int kStageBytes = TileStage<Stored, kRows>::kBytes;
  const TilePlace place = place_of_block(row_tiles, column_tiles);
  const RowTile tile = find_tile<kRows>(groups, place.row_tile);
  if (tile.count == 0) return;
  const int halves = activation == Activation::kSiluGated ? 2 : 1, per_half = kTileColumns / halves;
  const TileColumns columns{place.column_tile * per_half, per_half, static_cast<int>(weight.out) / halves};
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int steps = (static_cast<int>(weight.in) + kTileStep - 1) / kTileStep;
  const TileCopy<T, Stored, kRows> copy(tile, weight, columns, x, source);
  const auto stage = [&](int step) { return memory + (step % kTileStages * kStageBytes); };

  EDGE_UNROLL
  for (int step = 0; step < kTileStages - 1; ++step) {
    if (step < steps) copy.start(stage(step), step);
    commit_async();
  }
  float sums[2][kRows / 8][4] = {};
  for (int step = 0; step < steps; ++step) {
    const float4 scales = load_scales<Stored>(step, tile, weight, columns, warp * 32 + lane / 4 * 4);
    wait_async<kTileStages - 2>();
    __syncthreads();  // this stage is there, and the one before is no longer read
    const int ahead = step + kTileStages - 1;
    if (ahead < steps) copy.start(stage(ahead), ahead);
    commit_async();
    multiply_stage<T, Stored, kRows>(stage(step), scales, sums);
  }
  store_tile<T, kRows>(sums, memory, tile, columns, activation, y);
}

}  // namespace edge::cuda
