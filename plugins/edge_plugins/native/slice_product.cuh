// Few rows times a weight, on tensor cores: what decode does. It is made to read weights at the memory's speed.
//
// Weights go from memory to registers once, in 8 or 16 bytes along `out` (64 or 128 bytes without a gap per input),
// with the next unit of inputs on its way while one is multiplied. A tensor core's product has room for 8 rows of
// activations and costs the same for one: an int4 weight then takes 1.0 instructions to unpack, 0.4 to multiply and
// scale and 0.5 for the rest, where multiplying in float32 would take 3 for the first row and one more for every other,
// close to all that a Jetson's cores can issue while its memory delivers (docs/gpu.md has the counts).
//
// `in` is divided over the warps of a block and over slices (blocks), both in a fixed order, so that a large GPU has
// enough loads under way although a decode step has few columns. A block adds up its warps' sums in shared memory; the
// last block of a tile of columns may add up the slices and put together what belongs to a token (Ending).
#pragma once

#include "arrivals.cuh"
#include "combine.cuh"
#include "product_inputs.cuh"
#include "row_tiles.cuh"
#include "weight_fragments.cuh"

namespace edge::cuda {

constexpr int kSliceRows = 8;
constexpr int kSliceWarps = 4;
constexpr int kLongestSlice = 1024;  // inputs, kept in shared memory
constexpr int kEndingBytes = 128;    // at the beginning of shared memory

template <class Stored>
struct SliceSizes {
  static constexpr int kBytes = kIsInteger<Stored> ? 8 : 16;  // of a row, that a lane loads at once
  static constexpr int kWords = kBytes / 4;
  static constexpr int kOuts = kBytes * 8 / kBitsOf<Stored>;  // outputs of a lane
  static constexpr int kColumns = 8 * kOuts;                  // of a block
  static constexpr int kUnit = kIsInteger<Stored> ? 32 : 16;  // inputs multiplied together
  static constexpr int kSteps = kUnit / 16;
};

// A lane's part of a unit of inputs.
template <class Stored>
struct SliceUnit {
  using Sizes = SliceSizes<Stored>;
  uint32_t rows[Sizes::kSteps][4][Sizes::kWords];
  float scales[kIsInteger<Stored> ? Sizes::kOuts : 1];
};

// A lane's way through the units of its columns: what a unit costs beside its loads is a few additions.
template <class Stored>
class UnitLoader {
 public:
  using Sizes = SliceSizes<Stored>;

  __device__ UnitLoader(const Weight& weight, int matrix, int unit, int column) : out_(static_cast<int>(weight.out)) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int64_t row = matrix * weight.in + unit * Sizes::kUnit + operand_row(lane, 0);
    rows_ = element<Stored>(weight.values, row, out_, column);
    if constexpr (kIsInteger<Stored>) {
      const int block = static_cast<int>(weight.block), in = static_cast<int>(weight.in);
      units_of_scale_ = block / Sizes::kUnit;
      units_left_ = units_of_scale_ - unit % units_of_scale_;
      const int64_t scale_row = static_cast<int64_t>(matrix) * (in / block) + unit / units_of_scale_;
      scales_ = weight.scales + (scale_row * out_ + column);
    }
  }

  // Loads a unit and goes on to the next.
  __device__ void load(SliceUnit<Stored>& unit) {
    EDGE_UNROLL
    for (int step = 0; step < Sizes::kSteps; ++step) {
      EDGE_UNROLL
      for (int j = 0; j < 4; ++j) {
        const int64_t row = 16 * step + operand_row(0, j);
        load_bytes<Sizes::kBytes>(unit.rows[step][j], rows_ + row * row_bytes());
      }
    }
    rows_ += int64_t{Sizes::kUnit} * row_bytes();
    if constexpr (kIsInteger<Stored>) {
      EDGE_UNROLL
      for (int i = 0; i < Sizes::kOuts / 4; ++i) {
        const float4 four = reinterpret_cast<const float4*>(scales_)[i];
        unit.scales[4 * i] = four.x, unit.scales[4 * i + 1] = four.y;
        unit.scales[4 * i + 2] = four.z, unit.scales[4 * i + 3] = four.w;
      }
      if (--units_left_ == 0) {
        units_left_ = units_of_scale_;
        scales_ += out_;
      }
    }
  }

 private:
  __device__ int row_bytes() const { return out_ * kBitsOf<Stored> / 8; }

  int out_;
  const unsigned char* rows_;
  const float* scales_ = nullptr;
  int units_of_scale_ = 0, units_left_ = 0;
};

// sums += the unit's weights times its inputs, whose pairs stand in `right` (rows of activations being columns).
template <class T, class Stored>
__device__ inline void multiply_unit(const SliceUnit<Stored>& unit,
                                     const uint32_t (&right)[SliceSizes<Stored>::kSteps][2],
                                     float (&sums)[SliceSizes<Stored>::kOuts / 2][4]) {
  using Sizes = SliceSizes<Stored>;
  float bias[4] = {};
  if constexpr (std::is_same_v<Stored, Int4>) {
    EDGE_UNROLL
    for (int step = 0; step < Sizes::kSteps; ++step) subtract_bias<T>(bias, right[step]);
  }
  EDGE_UNROLL
  for (int group = 0; group < Sizes::kOuts / 4; ++group) {
    float parts[2][4] = {{bias[0], bias[1], bias[2], bias[3]}, {bias[0], bias[1], bias[2], bias[3]}};
    EDGE_UNROLL
    for (int step = 0; step < Sizes::kSteps; ++step) {
      uint32_t left[2][4];
      biased_operands<T, Stored>(unit.rows[step], group, left);
      EDGE_UNROLL
      for (int i = 0; i < 2; ++i) {
        mma_16x8x16<T>(kIsInteger<Stored> ? parts[i] : sums[2 * group + i], left[i], right[step]);
      }
    }
    if constexpr (kIsInteger<Stored>) {
      EDGE_UNROLL
      for (int i = 0; i < 2; ++i) {
        const int first = 4 * group + 2 * i;
        add_scaled(sums[2 * group + i], parts[i], unit.scales[first], unit.scales[first + 1]);
      }
    }
  }
}

// Where a warp keeps a sum in shared memory: the `value`-th of a lane, which has two rows of its outputs, a warp's
// width apart, turned by one each. So neither the 32 lanes that write nor 32 columns of a row that are read meet in a
// bank.
template <class Stored>
__device__ inline unsigned place_of_sum(unsigned warp, unsigned value, unsigned lane_place) {
  return (warp * 2 * SliceSizes<Stored>::kOuts + value) * kWarp + (lane_place + value) % kWarp;
}

// A lane's number in another order: `group` of outputs (of 8), pair of rows (of 4).
template <class Stored>
__device__ inline unsigned place_of_lane(unsigned group, unsigned row_pair) {
  constexpr unsigned kOuts = SliceSizes<Stored>::kOuts, kApart = kWarp / kOuts;
  return group % kApart * kOuts + group / kApart * (kSliceRows / 2) + row_pair;
}

// The block's sum over its warps, in their order, to slice blockIdx.z of the outputs.
template <class Stored>
__device__ inline void reduce_warps(const float (&sums)[SliceSizes<Stored>::kOuts / 2][4], float* memory,
                                    const RowTile& tile, int first_column, const PartialSums& outputs) {
  constexpr unsigned kOuts = SliceSizes<Stored>::kOuts, kColumns = SliceSizes<Stored>::kColumns;
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const unsigned mine = place_of_lane<Stored>(lane / 4, lane % 4);
  __syncthreads();  // the inputs are no longer needed
  EDGE_UNROLL
  for (unsigned j = 0; j < 4; ++j) {  // row 2 (lane % 4) + j % 2
    if (static_cast<int>(j % 2) >= tile.count) continue;
    EDGE_UNROLL
    for (unsigned i = 0; i < kOuts / 2; ++i) {
      memory[place_of_sum<Stored>(warp, j % 2 * kOuts + 2 * i + j / 2, mine)] = sums[i][j];
    }
  }
  __syncthreads();
  const auto columns = static_cast<unsigned>(min(static_cast<int>(kColumns), outputs.out - first_column));
  const int64_t slice_row = static_cast<int64_t>(blockIdx.z) * outputs.rows + tile.first;
  for (unsigned at = threadIdx.x; at < static_cast<unsigned>(tile.count) * kColumns; at += kSliceWarps * kWarp) {
    const unsigned row = at / kColumns, column = at % kColumns;
    if (column >= columns) continue;
    const unsigned value = row % 2 * kOuts + column % kOuts, theirs = place_of_lane<Stored>(column / kOuts, row / 2);
    float sum = 0;
    EDGE_UNROLL
    for (unsigned w = 0; w < kSliceWarps; ++w) sum += memory[place_of_sum<Stored>(w, value, theirs)];
    outputs.sums[(slice_row + row) * outputs.out + first_column + column] = sum;
  }
}

// What the last block of a tile of columns does. For few tokens: it is one block.
struct Ending {
  Combination combination;
  void* y;             // (tokens, width) of the activations' type
  uint32_t* arrivals;  // (tiles of columns); null: there is no ending
};

template <class T>
__device__ inline void end(const Ending& ending, const PartialSums& sums, int first_column, int columns) {
  constexpr int kPer = 4;  // outputs come in eights (fits_tensor_cores)
  const int fours = min(columns, ending.combination.width - first_column) / kPer;
  const int count = ending.combination.tokens * fours;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kSliceWarps * kWarp) {
    combine_columns<T, kPer>(ending.combination, SumReader{sums}, i / fours, first_column + i % fours * kPer,
                             static_cast<T*>(ending.y));
  }
}

// A block's slice of a tile of rows, to its place among the outputs.
template <class T, class Stored, class Reader>
__device__ inline void multiply_slice(const RowTile& tile, const Weight& weight, const Reader& read,
                                      const PartialSums& outputs, int pitch, unsigned char* memory) {
  using Sizes = SliceSizes<Stored>;
  auto* inputs = reinterpret_cast<T*>(memory);  // (8, pitch)
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int units = static_cast<int>(weight.in) / Sizes::kUnit, slice = static_cast<int>(blockIdx.z);
  const int first = units * slice / outputs.slices, last = units * (slice + 1) / outputs.slices;
  const int begin = first + (last - first) * warp / kSliceWarps;
  const int end = first + (last - first) * (warp + 1) / kSliceWarps;
  const int first_column = static_cast<int>(blockIdx.x) * Sizes::kColumns;
  const int column = first_column + lane / 4 * Sizes::kOuts;
  const bool has_columns = column < outputs.out;

  UnitLoader<Stored> loader(weight, tile.matrix, begin, has_columns ? column : 0);
  SliceUnit<Stored> loaded[2] = {};  // in turn
  if (has_columns && begin < end) loader.load(loaded[0]);
  const int length = (last - first) * Sizes::kUnit;
  for (int row = 0; row < tile.count; ++row) {
    for (int k = static_cast<int>(threadIdx.x); k < length; k += kSliceWarps * kWarp) {
      inputs[row * pitch + k] = from_float<T>(read(tile.first + row, first * Sizes::kUnit + k));
    }
  }
  __syncthreads();

  float sums[Sizes::kOuts / 2][4] = {};
  const bool has_row = lane / 4 < tile.count;
  const auto* row = reinterpret_cast<const uint32_t*>(inputs + (lane / 4 * pitch));
  for (int two = begin; two < end; two += 2) {
    EDGE_UNROLL
    for (int i = 0; i < 2; ++i) {
      const int unit = two + i;
      if (unit >= end) break;
      if (has_columns && unit + 1 < end) loader.load(loaded[1 - i]);
      uint32_t right[Sizes::kSteps][2];
      EDGE_UNROLL
      for (int step = 0; step < Sizes::kSteps; ++step) {
        const int pair = (unit - first) * (Sizes::kUnit / 2) + 8 * step + lane % 4;
        right[step][0] = has_row ? row[pair] : 0;
        right[step][1] = has_row ? row[pair + 4] : 0;
      }
      multiply_unit<T, Stored>(loaded[i], right, sums);
    }
  }
  reduce_warps<Stored>(sums, reinterpret_cast<float*>(memory), tile, first_column, outputs);
}

// Grid: (tiles of columns, tiles of 8 rows, slices). Shared memory: slice_bytes(). Bounds: 12 or 16 warps on a
// multiprocessor, each with 2 KiB of weights on their way, and no spills.
template <class T, class Stored, class Reader>
__global__ void __launch_bounds__(kSliceWarps* kWarp, std::is_same_v<Stored, Int4> ? 3 : 4)
    slice_product(RowGroups groups, Weight weight, Reader read, PartialSums outputs, int pitch, Ending ending) {
  EDGE_SHARED(memory);
  const RowTile tile = find_tile<kSliceRows>(groups, static_cast<int>(blockIdx.y));
  if (tile.count > 0) multiply_slice<T, Stored>(tile, weight, read, outputs, pitch, memory + kEndingBytes);
  if (ending.arrivals == nullptr) return;
  auto* is_last = reinterpret_cast<uint32_t*>(memory);
  __syncthreads();
  arrive(ending.arrivals + blockIdx.x, gridDim.y * gridDim.z, is_last);
  __syncthreads();
  constexpr int kColumns = SliceSizes<Stored>::kColumns;
  if (*is_last != 0) end<T>(ending, outputs, static_cast<int>(blockIdx.x) * kColumns, kColumns);
}

// Elements between rows of inputs in shared memory: rows begin 16 bytes apart, modulo 128, so that 8 rows of 4 pairs
// lie in different banks.
template <class Stored>
int slice_pitch(const Weight& weight, int slices) {
  const int units = static_cast<int>(weight.in) / SliceSizes<Stored>::kUnit;
  const int longest = (units + slices - 1) / slices * SliceSizes<Stored>::kUnit;
  return (longest + 63) / 64 * 64 + 8;
}

template <class T, class Stored>
size_t slice_bytes(int pitch) {
  const int sums = kSliceWarps * kSliceRows * SliceSizes<Stored>::kColumns;
  const size_t inputs = static_cast<size_t>(kSliceRows * pitch) * sizeof(T);
  return kEndingBytes + std::max(inputs, static_cast<size_t>(sums) * sizeof(float));
}

}  // namespace edge::cuda
