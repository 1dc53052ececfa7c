// One token, or a few: the recurrence itself, position by position, with the state in registers.
//
// A group's rows of the state (its heads times head_dim) are shared out over blocks, so that one sequence fills a GPU.
// A row's state lies in the registers of up to 32 lanes from the first position to the last: whatever the length, it is
// read once and written once. What a position needs is the work of all threads (prepare_step), behind one barrier;
// meanwhile the state's loads are under way.
//
// A group's norm, and the convolution's inputs that its blocks share, need all of them. After one token the last block
// to arrive sees to both (scan_step); what is left to it is little, for gates and squares are the work of every block.
// After several it would be too much for one: they are followed by another launch (finish.cuh).
#pragma once

#include "../native/arrivals.cuh"
#include "finish.cuh"
#include "mixer.cuh"

namespace edge::cuda {

constexpr int kStepThreads = 256;
constexpr int kStepValues = 8;  // of a row, in one lane's registers
constexpr int kStepRows = 4;    // rows of which a lane holds values
constexpr int kLargestState = kStepValues * kWarp;

// As few lanes as can hold a row of the state, 1 << bits of them; a group's rows stand in blocks of as many as fit.
struct StepLayout {
  explicit StepLayout(int64_t state) {
    while ((kStepValues << bits) < state) ++bits;
  }
  __host__ __device__ int row_values() const { return kStepValues << bits; }
  __host__ __device__ int block_rows() const { return (kStepThreads >> bits) * kStepRows; }

  int bits = 0;
};

// What a position brings for one row of the state.
struct RowInput {
  float decay;    // exp(dt a)
  float added;    // dt x
  float skipped;  // d x
  float gate;     // SiLU(z), or 1
};

// What a position brings, in shared memory. Lanes find their values of B and C side by side: the i-th of lane l stands
// at i * lanes + l.
struct StepInputs {
  __device__ StepInputs(unsigned char* memory, const StepLayout& layout)
      : rows(reinterpret_cast<RowInput*>(memory)),
        b(reinterpret_cast<float*>(rows + layout.block_rows())),
        c(b + layout.row_values()) {}
  __host__ __device__ static int bytes(const StepLayout& layout) {
    return layout.block_rows() * static_cast<int>(sizeof(RowInput)) +
           2 * layout.row_values() * static_cast<int>(sizeof(float));
  }

  RowInput* rows;  // (block rows), zeros where none are left
  float* b;        // (row values), zeros behind the state's end
  float* c;        // (row values)
};

// Which part of the state a block and a thread have.
struct StepBlock {
  __device__ StepBlock(const Call& a, const StepLayout& layout)
      : batch(static_cast<int>(blockIdx.z)),
        group(static_cast<int>(blockIdx.y)),
        rows(min(layout.block_rows(), a.s.width - (static_cast<int>(blockIdx.x) * layout.block_rows()))),
        channel((group * a.s.width) + (static_cast<int>(blockIdx.x) * layout.block_rows())),
        lane(static_cast<int>(threadIdx.x) & ((1 << layout.bits) - 1)),
        row((static_cast<int>(threadIdx.x) / kWarp * kStepRows * (kWarp >> layout.bits)) +
            (static_cast<int>(threadIdx.x) % kWarp >> layout.bits)),
        row_step(kWarp >> layout.bits) {}

  int batch, group;
  int rows;      // of this block
  int channel;   // of its first row
  int lane;      // of those that share a row
  int row;       // the first of the thread's kStepRows rows, within the block
  int row_step;  // from one of them to the next
};

template <class T, bool kGated>
__device__ inline RowInput prepare_row(const Call& a, const StepBlock& at, int64_t t, int row) {
  if (row >= at.rows) return {};
  const int channel = at.channel + row, head = channel / a.s.head_dim;
  const float x = convolve<T>(a, at.batch, channel, t), dt = time_step<T>(a, at.batch, head, t);
  const float gate = kGated ? silu(to_float(proj_row<T>(a, at.batch, t)[channel])) : 1.0f;
  if (kGated) carry_channel<T>(a, at.batch, channel);
  return {expf(dt * rate(a, head)), dt * x, a.d[head] * x, gate};
}

// B and C are made by every block of a group again: that costs reads from the second-level cache, no traffic beyond.
template <class T, int kPer, bool kGated>
__device__ inline void prepare_step(const Call& a, const StepBlock& at, const StepLayout& layout, int64_t t,
                                    const StepInputs& to) {
  const int values = layout.row_values(), state = a.s.state;
  for (int i = static_cast<int>(threadIdx.x); i < 2 * values + layout.block_rows(); i += kStepThreads) {
    if (i >= 2 * values) {
      to.rows[i - (2 * values)] = prepare_row<T, kGated>(a, at, t, i - (2 * values));
      continue;
    }
    const bool is_c = i >= values;
    const int n = is_c ? i - values : i, pack = n / kPer, lane = pack & ((1 << layout.bits) - 1);
    const int held = (pack >> layout.bits) * kPer + n % kPer;  // n is the lane's value of this number
    const int channel = a.s.inner + (is_c ? a.s.bc : 0) + (at.group * state) + n;
    (is_c ? to.c : to.b)[(held << layout.bits) + lane] = n < state ? convolve<T>(a, at.batch, channel, t) : 0.0f;
  }
}

// A thread's part of the state as it is stored. Neighbouring lanes have neighbouring packs of kPer values.
template <class S, int kPer>
struct StoredRows {
  static constexpr int kPacks = kStepValues / kPer;
  Pack<S, kPer> packs[kStepRows][kPacks];

  // From and to the block's rows in memory.
  __device__ void load(const Call& a, const StepBlock& at, const StepLayout& layout, const S* rows) {
    each(a, at, layout,
         [rows](auto& pack, int index) { pack = *reinterpret_cast<const Pack<S, kPer>*>(rows + index); });
  }
  __device__ void store(const Call& a, const StepBlock& at, const StepLayout& layout, S* rows) {
    each(a, at, layout,
         [rows](const auto& pack, int index) { *reinterpret_cast<Pack<S, kPer>*>(rows + index) = pack; });
  }

  // Calls move(pack, index in the block's rows) for every pack that there is.
  template <class Move>
  __device__ void each(const Call& a, const StepBlock& at, const StepLayout& layout, Move move) {
    EDGE_UNROLL
    for (int i = 0; i < kPacks; ++i) {
      const int n = ((i << layout.bits) + at.lane) * kPer;
      EDGE_UNROLL
      for (int slot = 0; slot < kStepRows; ++slot) {
        const int row = at.row + (slot * at.row_step);
        if (row < at.rows && n < a.s.state) move(packs[slot][i], (row * a.s.state) + n);
      }
    }
  }

  __device__ void widen(float (&h)[kStepRows][kStepValues]) const {
    EDGE_UNROLL
    for (int i = 0; i < kStepRows * kStepValues; ++i) {
      const int slot = i / kStepValues, value = i % kStepValues;
      h[slot][value] = to_float(packs[slot][value / kPer].values[value % kPer]);
    }
  }

  __device__ void narrow(const float (&h)[kStepRows][kStepValues]) {
    EDGE_UNROLL
    for (int i = 0; i < kStepRows * kStepValues; ++i) {
      const int slot = i / kStepValues, value = i % kStepValues;
      packs[slot][value / kPer].values[value % kPer] = from_float<S>(h[slot][value]);
    }
  }
};

// One position: the state's update and y = (h C + d x) gate for the rows of this thread; y (block rows). Returns the
// sum of squares of what it wrote.
__device__ inline float update_rows(float (&h)[kStepRows][kStepValues], const StepBlock& at, const StepLayout& layout,
                                    const StepInputs& in, float* y) {
  float decays[kStepRows], added[kStepRows], sums[kStepRows];
  EDGE_UNROLL
  for (int slot = 0; slot < kStepRows; ++slot) {
    const RowInput row = in.rows[at.row + (slot * at.row_step)];
    decays[slot] = row.decay;
    added[slot] = row.added;
    sums[slot] = at.lane == 0 ? row.skipped : 0.0f;
  }
  EDGE_UNROLL
  for (int i = 0; i < kStepValues; ++i) {
    const float b = in.b[(i << layout.bits) + at.lane], c = in.c[(i << layout.bits) + at.lane];
    EDGE_UNROLL
    for (int slot = 0; slot < kStepRows; ++slot) {
      h[slot][i] = h[slot][i] * decays[slot] + added[slot] * b;
      sums[slot] += h[slot][i] * c;
    }
  }
  for (int mask = 1 << layout.bits >> 1; mask > 0; mask >>= 1) {
    EDGE_UNROLL
    for (int slot = 0; slot < kStepRows; ++slot) sums[slot] += __shfl_xor_sync(kAllLanes, sums[slot], mask);
  }
  float squares = 0;
  EDGE_UNROLL
  for (int slot = 0; slot < kStepRows; ++slot) {
    const int row = at.row + (slot * at.row_step);
    if (at.lane != 0 || row >= at.rows) continue;
    const float value = sums[slot] * in.rows[row].gate;
    y[row] = value;
    squares += value * value;
  }
  return squares;
}

// The end of a token: y, from gated values (inner) and the sums of their squares of each of the group's blocks; and the
// carried inputs of B and C.
template <class T>
__device__ inline void finish_group(const Call& a, const StepBlock& at, const float* gated, const float* squares) {
  float sum = 0;
  for (unsigned i = threadIdx.x % kWarp; i < gridDim.x; i += kWarp) sum += squares[i];
  const float scale = norm_scale(a, warp_sum(sum));
  T* y = static_cast<T*>(a.y) + int64_t{at.batch} * a.s.inner;
  const int first = at.group * a.s.width;
  for (int i = first + static_cast<int>(threadIdx.x); i < first + a.s.width; i += kStepThreads) {
    y[i] = from_float<T>(gated[i] * scale * a.norm_weight[i]);
  }
  carry_bc<T>(a, at.batch, at.group);
}

// What scan_step has in shared memory before its inputs.
struct alignas(16) StepEnd {
  float warp_sums[kStepThreads / kWarp];
  uint32_t is_last;
};

// A single token, from beginning to end. grid: (blocks of a group, groups, batch). T: type of proj; S: of the state,
// whose rows are whole packs. gated (batch, inner); squares (batch, groups, blocks); arrivals (batch, groups).
template <class T, class S>
__global__ void __launch_bounds__(kStepThreads, 3)
    scan_step(Call a, StepLayout layout, float* gated, float* squares, uint32_t* arrivals) {
  constexpr int kPer = kPackBytes / sizeof(S);
  EDGE_SHARED(memory);
  const StepBlock at(a, layout);
  const int64_t first = (int64_t{at.batch} * a.s.inner + at.channel) * a.s.state;
  StoredRows<S, kPer> stored = {};
  stored.load(a, at, layout, static_cast<const S*>(a.past_ssm) + first);
  auto& shared = *reinterpret_cast<StepEnd*>(memory);
  const StepInputs inputs(memory + sizeof(StepEnd), layout);
  prepare_step<T, kPer, true>(a, at, layout, 0, inputs);
  __syncthreads();
  float h[kStepRows][kStepValues];
  stored.widen(h);  // not before: until here nothing has waited for the state
  gated += int64_t{at.batch} * a.s.inner;
  const float mine = update_rows(h, at, layout, inputs, gated + at.channel);
  stored.narrow(h);
  const float sum = block_sum(mine, shared.warp_sums, threadIdx.x < kWarp);
  const unsigned group = blockIdx.z * gridDim.y + blockIdx.y;
  squares += group * gridDim.x;
  if (threadIdx.x == 0) squares[blockIdx.x] = sum;
  arrive(arrivals + group, gridDim.x, &shared.is_last);
  stored.store(a, at, layout, static_cast<S*>(a.present_ssm) + first);
  __syncthreads();
  if (shared.is_last != 0) finish_group<T>(a, at, gated, squares);
}

// Any number of tokens. grid and T as above; kPer: numbers of the state in a pack, 1 where rows are no whole packs. y
// (batch, length, inner): neither gated nor normalised yet.
template <class T, class S, int kPer>
__global__ void __launch_bounds__(kStepThreads, 1) scan_steps(Call a, StepLayout layout, float* y) {
  EDGE_SHARED(memory);
  const StepBlock at(a, layout);
  const int64_t first = (int64_t{at.batch} * a.s.inner + at.channel) * a.s.state;
  StoredRows<S, kPer> stored = {};
  stored.load(a, at, layout, static_cast<const S*>(a.past_ssm) + first);
  float h[kStepRows][kStepValues];
  stored.widen(h);
  for (int64_t t = 0; t < a.length; ++t) {
    // Two sets of inputs in turn: slower warps may still read the last position's.
    const StepInputs inputs(memory + (t % 2 * StepInputs::bytes(layout)), layout);
    prepare_step<T, kPer, false>(a, at, layout, t, inputs);
    __syncthreads();
    update_rows(h, at, layout, inputs, y + (((at.batch * a.length) + t) * a.s.inner) + at.channel);
  }
  stored.narrow(h);
  stored.store(a, at, layout, static_cast<S*>(a.present_ssm) + first);
}

}  // namespace edge::cuda
