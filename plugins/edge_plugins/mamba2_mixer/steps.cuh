// One token, or a few: the recurrence itself, position by position, with the state in registers.
//
// A group's rows of the state (its heads times head_dim) are shared out over blocks, so that one sequence fills a GPU.
// A row's state lies in the registers of up to 32 lanes from the first position to the last: whatever the length, it is
// read once and written once. What a position needs is the work of all threads (prepare_step), behind one barrier;
// meanwhile the state's loads are under way.
#pragma once

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
  float unused;
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
      : batch(blockIdx.z),
        group(static_cast<int>(blockIdx.y)),
        rows(min(layout.block_rows(), a.s.width - (static_cast<int>(blockIdx.x) * layout.block_rows()))),
        channel((group * a.s.width) + (static_cast<int>(blockIdx.x) * layout.block_rows())),
        lane(static_cast<int>(threadIdx.x) & ((1 << layout.bits) - 1)),
        row((static_cast<int>(threadIdx.x) / kWarp * kStepRows * (kWarp >> layout.bits)) +
            (static_cast<int>(threadIdx.x) % kWarp >> layout.bits)),
        row_step(kWarp >> layout.bits) {}

  int64_t batch;
  int group;
  int rows;      // of this block
  int channel;   // of its first row
  int lane;      // of those that share a row
  int row;       // the first of the thread's kStepRows rows, within the block
  int row_step;  // from one of them to the next
};

template <class T>
__device__ inline RowInput prepare_row(const Call& a, const StepBlock& at, int64_t t, int row) {
  if (row >= at.rows) return {};
  const int channel = at.channel + row, head = channel / a.s.head_dim;
  const float x = convolve<T>(a, at.batch, channel, t), dt = time_step<T>(a, at.batch, head, t);
  return {expf(dt * rate(a, head)), dt * x, a.d[head] * x, 0.0f};
}

// B and C are made by every block of a group again: that costs reads from the second-level cache, no traffic beyond.
template <class T, int kPer>
__device__ inline void prepare_step(const Call& a, const StepBlock& at, const StepLayout& layout, int64_t t,
                                    const StepInputs& to) {
  const int values = layout.row_values(), state = a.s.state;
  for (int i = static_cast<int>(threadIdx.x); i < 2 * values + layout.block_rows(); i += kStepThreads) {
    if (i >= 2 * values) {
      to.rows[i - (2 * values)] = prepare_row<T>(a, at, t, i - (2 * values));
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

// One position: the state's update and y = h C + d x for the rows of this thread; y (block rows).
__device__ inline void update_rows(float (&h)[kStepRows][kStepValues], const StepBlock& at, const StepLayout& layout,
                                   const StepInputs& in, float* y) {
  float b[kStepValues], c[kStepValues], sums[kStepRows] = {};
  EDGE_UNROLL
  for (int i = 0; i < kStepValues; ++i) {
    b[i] = in.b[(i << layout.bits) + at.lane];
    c[i] = in.c[(i << layout.bits) + at.lane];
  }
  EDGE_UNROLL
  for (int slot = 0; slot < kStepRows; ++slot) {
    const RowInput row = in.rows[at.row + (slot * at.row_step)];
    EDGE_UNROLL
    for (int i = 0; i < kStepValues; ++i) {
      h[slot][i] = h[slot][i] * row.decay + row.added * b[i];
      sums[slot] += h[slot][i] * c[i];
    }
    if (at.lane == 0) sums[slot] += row.skipped;
  }
  for (int mask = 1 << layout.bits >> 1; mask > 0; mask >>= 1) {
    EDGE_UNROLL
    for (int slot = 0; slot < kStepRows; ++slot) sums[slot] += __shfl_xor_sync(kAllLanes, sums[slot], mask);
  }
  EDGE_UNROLL
  for (int slot = 0; slot < kStepRows; ++slot) {
    const int row = at.row + (slot * at.row_step);
    if (at.lane == 0 && row < at.rows) y[row] = sums[slot];
  }
}

// grid: (blocks of a group, groups, batch). T: type of proj; S: of the state; kPer: its values in a pack, 1 where rows
// begin anywhere; kOne: for a length of 1 alone. y (batch, length, inner): neither gated nor normalised yet, for a
// group's norm needs all of its blocks (finish.cuh).
template <class T, class S, int kPer, bool kOne>
__global__ void __launch_bounds__(kStepThreads, kOne ? 3 : 1) scan_steps(Call a, StepLayout layout, float* y) {
  EDGE_SHARED(memory);
  const StepBlock at(a, layout);
  const int64_t length = kOne ? 1 : a.length, first = ((at.batch * a.s.inner) + at.channel) * a.s.state;
  StoredRows<S, kPer> stored = {};
  stored.each(a, at, layout, [past = static_cast<const S*>(a.past_ssm) + first](auto& pack, int index) {
    pack = *reinterpret_cast<const Pack<S, kPer>*>(past + index);
  });
  float h[kStepRows][kStepValues];
  if (!kOne) stored.widen(h);
  for (int64_t t = 0; t < length; ++t) {
    // Two sets of inputs in turn: slower warps may still read the last position's.
    const StepInputs inputs(memory + (t % 2 * StepInputs::bytes(layout)), layout);
    prepare_step<T, kPer>(a, at, layout, t, inputs);
    __syncthreads();
    if (kOne) stored.widen(h);  // not before: until here nothing has waited for the state
    update_rows(h, at, layout, inputs, y + (((at.batch * length) + t) * a.s.inner) + at.channel);
  }
  stored.narrow(h);
  stored.each(a, at, layout, [present = static_cast<S*>(a.present_ssm) + first](const auto& pack, int index) {
    *reinterpret_cast<Pack<S, kPer>*>(present + index) = pack;
  });
}

}  // namespace edge::cuda
