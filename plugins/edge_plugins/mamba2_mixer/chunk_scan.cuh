// Many tokens: the scan over chunks, on tensor cores, with the state in registers (section 6 of arXiv 2405.21060).
//
// The paper's four steps (outputs within chunks, their states, the carry, its part of the outputs) are one kernel here:
// a block has a head and goes through its chunks in turn. States then never leave the chip between chunks, which would
// be more traffic than everything else together, and the heads of one sequence already fill the GPUs that this is for;
// the calls are short, too, since prompts are fed in blocks. A product's operands are rounded to the type of the
// activations, as in the authors' own kernels; sums, states and decays are float32. For a chunk, with sums s of dt a
// (all differences <= 0):
//
//     y = exp(s) (C h^T) + M x + d x      M[i][j] = (C B^T)[i][j] exp(s[i] - s[j]) dt[j] for j <= i, else 0
//     h = exp(s[last]) h + (w x)^T B      w[j] = exp(s[last] - s[j]) dt[j]
//
// A warp has 16 columns of head_dim. The tensor cores' layout of a result (h, as it is added up) is that of the right
// operand of the next product (h in C h^T): h only needs to be rounded. A chunk's data is copied in the background in
// two halves: C and the scores while x and B are worked on, x and B while C is.
#pragma once

#include "chunks.cuh"

namespace edge::cuda {

constexpr int kMostWarps = 5;  // of a block: a head_dim of 80 is one block, one of 128 two equal ones

// What a block keeps of a chunk. kState: the state's size, rounded up; width: columns of x.
template <class T, int kState>
struct ChunkShared {
  static constexpr int kStateStride = kState + kRowPadding, kChunkStride = kChunk + kRowPadding;

  __host__ __device__ static size_t bytes(int width) {
    return kChunk * ((2 * kStateStride + 2 * kChunkStride + width + kRowPadding) * sizeof(T) + 3 * sizeof(float));
  }
  __device__ ChunkShared(unsigned char* memory, int width)
      : x_stride(width + kRowPadding),
        c(reinterpret_cast<T*>(memory)),
        b(c + (kChunk * kStateStride)),
        scores(b + (kChunk * kStateStride)),
        mix(scores + (kChunk * kChunkStride)),
        x(mix + (kChunk * kChunkStride)),
        decay(reinterpret_cast<float*>(x + (kChunk * x_stride))),
        dt(decay + kChunk),
        weight(dt + kChunk) {}

  int x_stride;
  T* c;           // (kChunk, kState)
  T* b;           // (kChunk, kState)
  T* scores;      // (kChunk, kChunk): C B^T
  T* mix;         // (kChunk, kChunk): M
  T* x;           // (kChunk, width)
  float* decay;   // (kChunk): s
  float* dt;      // (kChunk)
  float* weight;  // (kChunk): w
};

// Which part of which head a block and a warp have.
struct ScanBlock {
  __device__ explicit ScanBlock(const Call& a)
      : batch(blockIdx.z),
        head(static_cast<int>(blockIdx.y)),
        group(head / a.s.group_heads),
        width(static_cast<int>(blockDim.x) / kWarp * kTile),
        first(static_cast<int>(blockIdx.x) * width),
        lane(static_cast<int>(threadIdx.x) % kWarp),
        column(static_cast<int>(threadIdx.x) / kWarp * kTile) {}

  // Whether the warp's columns are any of the head's.
  __device__ bool there(const Call& a) const { return first + column < a.head_dim; }

  int64_t batch;
  int head, group;
  int width, first;  // the block's columns of head_dim
  int lane, column;  // column: the warp's first, within the block
};

// ---- Copies ----

template <class T, int kState>
__device__ inline void copy_scores_and_c(const Call& a, const ChunkRoom& room, const ScanBlock& at, int64_t chunk,
                                         const ChunkShared<T, kState>& to) {
  const int64_t chunks = chunks_of(a.length), start = chunk * kChunk;
  if (chunk < chunks) {
    const int there = static_cast<int>(min(a.length - start, int64_t{kChunk}));
    const T* xbc = static_cast<const T*>(room.xbc) + (((at.batch * a.length) + start) * a.s.conv_dim);
    const int64_t score = (((at.batch * chunks) + chunk) * a.groups) + at.group;
    const int64_t step = ((((at.batch * a.heads) + at.head) * chunks) + chunk) * kChunk;
    copy_rows(to.scores, kChunk, static_cast<const T*>(room.scores) + (score * kChunk * kChunk), kChunk, kChunk,
              kChunk);
    copy_rows(to.c, kState, xbc + a.s.inner + a.s.bc + (at.group * a.s.state), a.s.conv_dim, there, a.s.state);
    for (int i = static_cast<int>(threadIdx.x) * 4; i < kChunk; i += static_cast<int>(blockDim.x) * 4) {
      copy_async(to.decay + i, room.decay + step + i, true);
      copy_async(to.dt + i, room.dt + step + i, true);
    }
  }
  commit_async();
}

template <class T, int kState>
__device__ inline void copy_x_and_b(const Call& a, const ChunkRoom& room, const ScanBlock& at, int64_t chunk,
                                    const ChunkShared<T, kState>& to) {
  const int64_t start = chunk * kChunk;
  const int channel = (at.head * a.s.head_dim) + at.first;
  if (start < a.length) {
    const int there = static_cast<int>(min(a.length - start, int64_t{kChunk}));
    const T* xbc = static_cast<const T*>(room.xbc) + (((at.batch * a.length) + start) * a.s.conv_dim);
    copy_rows(to.x, at.width, xbc + channel, a.s.conv_dim, there, a.s.head_dim - at.first);
    copy_rows(to.b, kState, xbc + a.s.inner + (at.group * a.s.state), a.s.conv_dim, there, a.s.state);
  }
  commit_async();
}

// ---- The state, 16 rows a warp: h[j] holds rows lane / 4 and 8 further, columns 8 j + 2 (lane % 4) and the next ----

// Calls move(two of h, where they stand) for all that there are. state: (batch, heads, head_dim, state).
template <int kState, class S, class Move>
__device__ inline void each_pair(const Call& a, const ScanBlock& at, float (&h)[kState / 8][4], S* state, Move move) {
  if (!at.there(a)) return;
  const int64_t row = (((at.batch * a.heads) + at.head) * a.head_dim) + at.first + at.column + at.lane / 4;
  S* low = state + (row * a.state) + (at.lane % 4 * 2);
  S* high = low + (8 * a.state);
  EDGE_UNROLL
  for (int j = 0; j < kState / 8; ++j) {
    if (8 * j >= a.s.state) continue;
    move(h[j], low + (8 * j));
    move(h[j] + 2, high + (8 * j));
  }
}

template <class S, int kState>
__device__ inline void load_state(const Call& a, const ScanBlock& at, float (&h)[kState / 8][4]) {
  each_pair<kState>(a, at, h, static_cast<const S*>(a.past_ssm), [](float* pair, const S* from) {
    const auto stored = *reinterpret_cast<const Pack<S, 2>*>(from);
    pair[0] = to_float(stored.values[0]);
    pair[1] = to_float(stored.values[1]);
  });
}

template <class S, int kState>
__device__ inline void store_state(const Call& a, const ScanBlock& at, float (&h)[kState / 8][4]) {
  each_pair<kState>(a, at, h, static_cast<S*>(a.present_ssm), [](const float* pair, S* to) {
    *reinterpret_cast<Pack<S, 2>*>(to) = {from_float<S>(pair[0]), from_float<S>(pair[1])};
  });
}

// ---- One chunk ----

// M and w, by all threads. A warp has tiles of M on and below the diagonal; nobody reads the others.
template <class T, int kState>
__device__ inline void mask_scores(const ChunkShared<T, kState>& in, int lane) {
  constexpr int kStride = ChunkShared<T, kState>::kChunkStride;
  constexpr int kTiles = kChunk / kTile, kPairs = kTile / 2, kRowsAtOnce = kWarp / kPairs;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, warps = static_cast<int>(blockDim.x) / kWarp;
  for (int tile = warp; tile < kTiles * (kTiles + 1) / 2; tile += warps) {
    int m = 0, k = tile;  // of rows, of columns
    while (k > m) k -= ++m;
    const int j = k * kTile + lane % kPairs * 2;
    const auto decay = *reinterpret_cast<const Pack<float, 2>*>(in.decay + j);
    const auto dt = *reinterpret_cast<const Pack<float, 2>*>(in.dt + j);
    EDGE_UNROLL
    for (int part = 0; part < kTile / kRowsAtOnce; ++part) {
      // Every second of 8 rows, whose places in shared memory are in different banks.
      const int i = m * kTile + part / 2 * 2 * kRowsAtOnce + lane / kPairs * 2 + part % 2;
      const float2 score = unpack<T>(*reinterpret_cast<const uint32_t*>(in.scores + i * kStride + j));
      const float here = in.decay[i];
      const float first = score.x * (__expf(here - decay.values[0]) * dt.values[0]);
      const float second = score.y * (__expf(here - decay.values[1]) * dt.values[1]);
      *reinterpret_cast<uint32_t*>(in.mix + i * kStride + j) =
          pack<T>(j <= i ? first : 0.0f, j + 1 <= i ? second : 0.0f);
    }
  }
  for (int j = static_cast<int>(threadIdx.x); j < kChunk; j += static_cast<int>(blockDim.x)) {
    in.weight[j] = __expf(in.decay[kChunk - 1] - in.decay[j]) * in.dt[j];
  }
}

// y = exp(s) (C h^T): the chunk's rows, the warp's 16 columns as two tiles of 8.
template <class T, int kState>
__device__ inline void carried_output(const ChunkShared<T, kState>& in, int lane, const float (&h)[kState / 8][4],
                                      float (&y)[kChunk / kTile][2][4]) {
  EDGE_UNROLL
  for (int n = 0; n < kState / kTile; ++n) {
    const float *low = h[2 * n], *high = h[(2 * n) + 1];
    const uint32_t first[2] = {pack<T>(low[0], low[1]), pack<T>(high[0], high[1])};
    const uint32_t second[2] = {pack<T>(low[2], low[3]), pack<T>(high[2], high[3])};
    EDGE_UNROLL
    for (int m = 0; m < kChunk / kTile; ++m) {
      uint32_t left[4];
      const int row = (m * kTile) + lane % 16;
      load_matrices(left, in.c + (row * ChunkShared<T, kState>::kStateStride) + (n * kTile) + (lane / 16 * 8));
      mma_16x8x16<T>(y[m][0], left, first);
      mma_16x8x16<T>(y[m][1], left, second);
    }
  }
  EDGE_UNROLL
  for (int m = 0; m < kChunk / kTile; ++m) {
    const int row = (m * kTile) + lane / 4;
    const float since_start[2] = {__expf(in.decay[row]), __expf(in.decay[row + 8])};
    EDGE_UNROLL
    for (int i = 0; i < 8; ++i) y[m][i / 4][i % 4] *= since_start[i % 4 / 2];
  }
}

// x as it lies in `pairs` (registers of a left operand, transposed) times w of the chunk's rows from `row`.
template <class T>
__device__ inline uint32_t weighted(uint32_t pair, const float* weight) {
  const float2 x = unpack<T>(pair);
  return pack<T>(x.x * weight[0], x.y * weight[1]);
}

// y += M x, and h += (w x)^T B for 16 of the chunk's rows.
template <class T, int kState>
__device__ inline void add_rows(const ChunkShared<T, kState>& in, const ScanBlock& at, int k, float (&h)[kState / 8][4],
                                float (&y)[kChunk / kTile][2][4]) {
  using Shared = ChunkShared<T, kState>;
  const int lane = at.lane, row = (k * kTile) + lane % 16;
  uint32_t x[4];  // both right operand (rows k, columns) and, transposed, left one (columns, rows k)
  load_matrices_transposed(x, in.x + (row * in.x_stride) + at.column + (lane / 16 * 8));
  EDGE_UNROLL
  for (int m = 0; m < kChunk / kTile; ++m) {
    if (m < k) continue;
    uint32_t left[4];
    load_matrices(left, in.mix + (((m * kTile) + lane % 16) * Shared::kChunkStride) + (k * kTile) + (lane / 16 * 8));
    mma_16x8x16<T>(y[m][0], left, {x[0], x[1]});
    mma_16x8x16<T>(y[m][1], left, {x[2], x[3]});
  }
  const float* weight = in.weight + (k * kTile) + (lane % 4 * 2);
  const uint32_t left[4] = {weighted<T>(x[0], weight), weighted<T>(x[2], weight), weighted<T>(x[1], weight + 8),
                            weighted<T>(x[3], weight + 8)};
  EDGE_UNROLL
  for (int n = 0; n < kState / kTile; ++n) {
    uint32_t right[4];
    load_matrices_transposed(right, in.b + (row * Shared::kStateStride) + (n * kTile) + (lane / 16 * 8));
    mma_16x8x16<T>(h[2 * n], left, {right[0], right[1]});
    mma_16x8x16<T>(h[(2 * n) + 1], left, {right[2], right[3]});
  }
}

// Writes y + d x.
template <class T, int kState>
__device__ inline void write_output(const Call& a, const ScanBlock& at, const ChunkShared<T, kState>& in, int64_t start,
                                    const float (&y)[kChunk / kTile][2][4], float* scanned) {
  if (!at.there(a)) return;
  const float d = a.d[at.head];
  const int channel = (at.head * a.s.head_dim) + at.first;
  EDGE_UNROLL
  for (int i = 0; i < kChunk / 8; ++i) {  // 8 rows at a time
    const int row = (i * 8) + at.lane / 4;
    if (start + row >= a.length) continue;
    EDGE_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int column = at.column + (half * 8) + (at.lane % 4 * 2);
      const float2 x = unpack<T>(*reinterpret_cast<const uint32_t*>(in.x + (row * in.x_stride) + column));
      const float* sums = y[i / 2][half] + (i % 2 * 2);
      float* to = scanned + (((at.batch * a.length) + start + row) * a.s.inner) + channel + column;
      *reinterpret_cast<Pack<float, 2>*>(to) = {sums[0] + d * x.x, sums[1] + d * x.y};
    }
  }
}

// grid: (blocks of head_dim, heads, batch). scanned (batch, length, inner): y, neither gated nor normalised yet.
template <class T, int kState>
__global__ void __launch_bounds__(kMostWarps* kWarp, kState <= 128 ? 2 : 1)
    scan_chunks(Call a, ChunkRoom room, float* scanned) {
  EDGE_SHARED(memory);
  const ScanBlock at(a);
  const ChunkShared<T, kState> shared(memory, at.width);
  const int64_t chunks = chunks_of(a.length);
  copy_scores_and_c(a, room, at, 0, shared);
  copy_x_and_b(a, room, at, 0, shared);
  float h[kState / 8][4] = {};
  if (a.ssm_type == Type::kFloat32) load_state<float, kState>(a, at, h);
  if (a.ssm_type == Type::kFloat16) load_state<float16, kState>(a, at, h);
  if (a.ssm_type == Type::kBfloat16) load_state<bfloat16, kState>(a, at, h);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    float y[kChunk / kTile][2][4] = {};
    wait_async<1>();
    __syncthreads();  // C, scores and time steps are there
    mask_scores(shared, at.lane);
    carried_output<T, kState>(shared, at.lane, h, y);
    const float over_all = __expf(shared.decay[kChunk - 1]);
    wait_async<0>();
    __syncthreads();  // M, w, x and B are there; C, scores and time steps are used up
    copy_scores_and_c(a, room, at, chunk + 1, shared);
    EDGE_UNROLL
    for (int i = 0; i < kState / 2; ++i) h[i / 4][i % 4] *= over_all;
    EDGE_UNROLL
    for (int k = 0; k < kChunk / kTile; ++k) add_rows<T, kState>(shared, at, k, h, y);
    write_output(a, at, shared, chunk * kChunk, y, scanned);
    __syncthreads();  // x, B, M and w are used up
    copy_x_and_b(a, room, at, chunk + 1, shared);
  }
  if (a.ssm_type == Type::kFloat32) store_state<float, kState>(a, at, h);
  if (a.ssm_type == Type::kFloat16) store_state<float16, kState>(a, at, h);
  if (a.ssm_type == Type::kBfloat16) store_state<bfloat16, kState>(a, at, h);
}

}  // namespace edge::cuda
