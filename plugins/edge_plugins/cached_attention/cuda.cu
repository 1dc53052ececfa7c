// edge::CachedAttention on GPUs: stores what is new, attends to what is stored, and puts split keys together.
#include <algorithm>
#include <utility>

#include "combine.cuh"
#include "cuda.h"
#include "store.cuh"
#include "tensor.cuh"
#include "vector.cuh"

namespace edge::cuda {
namespace attention {
namespace {

// Splits are made while a batch row has fewer rows of partial results than this: 256 blocks of 16 rows or 32 of 128,
// enough for 16 to 132 multiprocessors, and a workspace of 2 MiB at a head_dim of 128. The number depends on the
// capacity, not on the batch: a row's result is the same in any company.
constexpr int64_t kPartialRows = 4096;

bool uses_tensor_cores(const CachedAttentionArgs& a) {
  return a.type != Type::kFloat32 && a.cache_type != Type::kFloat32 && a.head_dim % 16 == 0;
}

// head_dim as the kernels have it; smaller ones are filled up with zeros.
int room_for(int64_t head_dim, bool tensor_cores) {
  if (head_dim <= 64) return 64;
  if (head_dim <= 80 && tensor_cores) return 80;
  return head_dim <= 128 ? 128 : kMaxHeadDim;
}

int64_t rows_of(const CachedAttentionArgs& a) { return a.length * (a.heads / a.kv_heads); }

template <int kHeadDim>
int tile_rows(int64_t rows) {
  constexpr int kFew = Division<kHeadDim, true>::kTileRows;
  return rows <= kFew ? kFew : Division<kHeadDim, false>::kTileRows;
}

int tile_rows_of(const CachedAttentionArgs& a) {
  if (!uses_tensor_cores(a)) return VectorAttention<float, 64>::kTileRows;
  return a.head_dim <= 128 ? tile_rows<128>(rows_of(a)) : tile_rows<kMaxHeadDim>(rows_of(a));
}

// Rows of all tiles of all key heads of a batch row.
int64_t padded_rows(const CachedAttentionArgs& a) {
  const int64_t rows = tile_rows_of(a);
  return (rows_of(a) + rows - 1) / rows * rows * a.kv_heads;
}

int64_t most_splits(const CachedAttentionArgs& a) { return (a.capacity + kSplitKeys - 1) / kSplitKeys; }

Problem problem_of(const CachedAttentionArgs& a, void* workspace) {
  Problem p{};
  p.type = a.type;
  p.batch = static_cast<int>(a.batch);
  p.length = static_cast<int>(a.length);
  p.heads = static_cast<int>(a.heads);
  p.kv_heads = static_cast<int>(a.kv_heads);
  p.group = static_cast<int>(a.heads / a.kv_heads);
  p.head_dim = static_cast<int>(a.head_dim);
  p.capacity = static_cast<int>(a.capacity);
  p.window = a.window >= a.capacity ? 0 : static_cast<int>(a.window);
  p.scale = a.scale * 1.44269504f;  // log2(e)
  p.query = a.query;
  p.past_length = a.past_length;
  p.keys = {a.present_key, a.present_key_scale};
  p.values = {a.present_value, a.present_value_scale};
  p.y = a.y;
  p.tile_rows = tile_rows_of(a);
  p.row_tiles = divide_up(p.rows(), p.tile_rows);
  p.splits = static_cast<int>(std::max<int64_t>(1, std::min(most_splits(a), kPartialRows / padded_rows(a))));
  const int64_t partial_rows = a.batch * padded_rows(a) * p.splits;
  p.partial_sums = static_cast<float*>(workspace);
  p.partial_stats = reinterpret_cast<float2*>(p.partial_sums + ((partial_rows * a.head_dim + 1) / 2 * 2));
  return p;
}

// ---- Storing ----

void pass_through(const Copied& c, Stream stream) {
  if (c.from == c.to) return;
  const size_t blocks = (c.bytes / sizeof(uint4) + kThreads) / kThreads;
  launch(copy, dim3(static_cast<unsigned>(std::min<size_t>(blocks, 4096))), kThreads, 0, stream, c);
}

void store_new(const CachedAttentionArgs& a, Stream stream) {
  const size_t cache_rows = static_cast<size_t>(a.batch * a.kv_heads * a.capacity);
  const size_t bytes = cache_rows * static_cast<size_t>(a.head_dim) * size_of(a.cache_type);
  pass_through({a.past_key, a.present_key, bytes}, stream);
  pass_through({a.past_value, a.present_value, bytes}, stream);
  if (a.cache_type == Type::kInt8) {
    pass_through({a.past_key_scale, a.present_key_scale, cache_rows * sizeof(float)}, stream);
    pass_through({a.past_value_scale, a.present_value_scale, cache_rows * sizeof(float)}, stream);
  }
  const Stored stored{a.type,
                      a.cache_type,
                      static_cast<int>(a.length),
                      static_cast<int>(a.kv_heads),
                      static_cast<int>(a.head_dim),
                      static_cast<int>(a.capacity),
                      a.past_length,
                      {a.key, a.present_key, a.present_key_scale},
                      {a.value, a.present_value, a.present_value_scale}};
  const int blocks = divide_up(static_cast<int>(a.length * a.kv_heads), kWarps);
  launch(store, dim3(static_cast<unsigned>(blocks), 2, static_cast<unsigned>(a.batch)), kThreads, 0, stream, stored);
}

// ---- Attending ----

dim3 grid_of(const Problem& p, int x) {
  return dim3(static_cast<unsigned>(x), static_cast<unsigned>(p.kv_heads), static_cast<unsigned>(p.batch));
}

template <class C, int kHeadDim>
void on_cuda_cores(const Problem& p, Stream stream) {
  launch(attend_vector<C, kHeadDim>, grid_of(p, p.splits * p.row_tiles), kThreads,
         VectorAttention<C, kHeadDim>::kSharedBytes, stream, p);
}

template <class C>
void on_cuda_cores(const Problem& p, Stream stream) {
  const int room = room_for(p.head_dim, false);
  if (room == 64) return on_cuda_cores<C, 64>(p, stream);
  if (room == 128) return on_cuda_cores<C, 128>(p, stream);
  on_cuda_cores<C, kMaxHeadDim>(p, stream);
}

template <class C, int kHeadDim>
void on_tensor_cores(const Problem& p, Stream stream) {
  const dim3 grid = grid_of(p, p.splits * p.row_tiles);
  if (p.tile_rows == Division<kHeadDim, true>::kTileRows) {
    launch(attend_tensor<C, kHeadDim, true>, grid, kThreads, SharedLayout<C, kHeadDim, true>::kBytes, stream, p);
  } else {
    launch(attend_tensor<C, kHeadDim, false>, grid, kThreads, SharedLayout<C, kHeadDim, false>::kBytes, stream, p);
  }
}

template <class C>
void on_tensor_cores(const Problem& p, Stream stream) {
  const int room = room_for(p.head_dim, true);
  if (room == 64) return on_tensor_cores<C, 64>(p, stream);
  if (room == 80) return on_tensor_cores<C, 80>(p, stream);
  if (room == 128) return on_tensor_cores<C, 128>(p, stream);
  on_tensor_cores<C, kMaxHeadDim>(p, stream);
}

void attend(const CachedAttentionArgs& a, const Problem& p, Stream stream) {
  if (uses_tensor_cores(a)) {
    if (a.cache_type == Type::kFloat16) return on_tensor_cores<float16>(p, stream);
    return on_tensor_cores<int8_t>(p, stream);
  }
  if (a.cache_type == Type::kFloat32) return on_cuda_cores<float>(p, stream);
  if (a.cache_type == Type::kFloat16) return on_cuda_cores<float16>(p, stream);
  on_cuda_cores<int8_t>(p, stream);
}

void put_together(const Problem& p, Stream stream) {
  if (p.splits <= kFewSplits) {
    launch(combine<true>, grid_of(p, divide_up(p.rows(), kWarps)), kThreads, 0, stream, p);
  } else {
    launch(combine<false>, grid_of(p, p.rows()), kThreads, combine_shared_bytes(p), stream, p);
  }
}

}  // namespace
}  // namespace attention

const char* cached_attention_unsupported(const CachedAttentionArgs& a) {
  constexpr int64_t kLargestGrid = 65535, kLargestInt = int64_t{1} << 30;
  if (a.type == Type::kInt8) return "activations must be float32, float16 or bfloat16";
  if (a.cache_type == Type::kBfloat16) return "the cache must be float32, float16 or int8";
  if (a.kv_heads < 1 || a.heads < 1 || a.heads % a.kv_heads != 0) return "heads must be a multiple of kv_heads";
  if (a.head_dim < 1 || a.head_dim > attention::kMaxHeadDim) return "head_dim must be 1 to 256";
  if (a.window < 0) return "window must not be negative";
  if (a.batch > kLargestGrid || a.kv_heads > kLargestGrid) return "batch and kv_heads must not exceed 65535";
  if (a.length + a.capacity > kLargestInt || a.length * a.heads > kLargestInt) return "sizes must fit 30 bits";
  return nullptr;
}

size_t cached_attention_workspace(const CachedAttentionArgs& a) {
  using namespace attention;
  const int64_t rows = std::min(padded_rows(a) * most_splits(a), kPartialRows);
  return static_cast<size_t>(a.batch * rows * (a.head_dim + 2) + 1) * sizeof(float);
}

void cached_attention(const CachedAttentionArgs& a, void* workspace, Stream stream) {
  if (const char* reason = cached_attention_unsupported(a)) {
    throw std::invalid_argument(std::string("CachedAttention: ") + reason + ".");
  }
  attention::store_new(a, stream);
  if (a.batch == 0 || a.length == 0) return;
  const attention::Problem p = attention::problem_of(a, workspace);
  attention::attend(a, p, stream);
  if (p.splits > 1) attention::put_together(p, stream);
}

}  // namespace edge::cuda
