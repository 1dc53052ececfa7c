// edge::Mamba2Mixer on a GPU: which kernels a call needs.
//
//     one token                  scan_step                                                 (steps.cuh)
//     few tokens, or float32     scan_steps -> finish                                      (steps.cuh, finish.cuh)
//     many in float16, bfloat16  convolve_all -> prepare_chunks -> scan_chunks -> finish   (chunks.cuh, chunk_scan.cuh)
#include <algorithm>

#include "chunk_scan.cuh"
#include "cuda.h"
#include "finish.cuh"
#include "steps.cuh"

namespace edge::cuda {
namespace {

constexpr int64_t kFewTokens = 8;                    // up to which a chunk would hold mostly padding
constexpr int64_t kLargestGrid = 65535;              // along y and z
constexpr size_t kLargestShared = size_t{99} << 10;  // bytes that a block may have on every GPU from sm_80 on

bool floating(Type type) { return type == Type::kFloat32 || type == Type::kFloat16 || type == Type::kBfloat16; }

bool in_chunks(const Mamba2MixerArgs& a) {
  return a.type != Type::kFloat32 && a.length > kFewTokens && a.head_dim % kTile == 0 && a.state % kTile == 0 &&
         a.kernel <= kMostTaps;
}

unsigned blocks(int64_t count, int64_t each) { return static_cast<unsigned>((count + each - 1) / each); }

int64_t blocks_of_group(const Mamba2MixerArgs& a) {
  return blocks(a.heads / a.groups * a.head_dim, StepLayout(a.state).block_rows());
}

// What of the workspace is whose. At address 0 it only counts the bytes.
struct Workspace {
  Workspace(const Mamba2MixerArgs& a, void* memory) : begin_(reinterpret_cast<uintptr_t>(memory)), next_(begin_) {
    const Mamba2MixerSizes s(a);
    const int64_t positions = a.batch * a.length;
    scanned = static_cast<float*>(take(positions * s.inner, sizeof(float)));
    squares = static_cast<float*>(take(a.batch * a.groups * blocks_of_group(a), sizeof(float)));
    if (!in_chunks(a)) return;
    const int64_t padded = a.batch * chunks_of(a.length) * kChunk;
    chunks.xbc = take(positions * s.conv_dim, size_of(a.type));
    chunks.scores = take(padded * a.groups * kChunk, size_of(a.type));
    chunks.dt = static_cast<float*>(take(padded * a.heads, sizeof(float)));
    chunks.decay = static_cast<float*>(take(padded * a.heads, sizeof(float)));
  }
  size_t bytes() const { return next_ - begin_; }

  float* scanned;  // (batch, length, inner): y, not normalised yet, and gated only in scan_step
  float* squares;  // (batch, groups, blocks of a group)
  ChunkRoom chunks{};

 private:
  void* take(int64_t count, size_t size) {
    const uintptr_t here = next_;
    next_ += (static_cast<size_t>(count) * size + 15) / 16 * 16;
    return reinterpret_cast<void*>(here);
  }

  uintptr_t begin_, next_;
};

// Calls call(T{}) with the type's T.
template <class Function>
void with_type(Type type, Function call) {
  if (type == Type::kFloat32) return call(float{});
  if (type == Type::kFloat16) return call(float16{});
  call(bfloat16{});
}

dim3 grid_of(const Call& a, int64_t x, int64_t y) {
  return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(a.batch));
}

bool has_whole_packs(const Mamba2MixerArgs& a) { return a.state * size_of(a.ssm_type) % kPackBytes == 0; }

// Whether the blocks of scan_step can finish what they do.
bool ends_in_place(const Mamba2MixerArgs& a, const uint32_t* arrivals) {
  return a.length == 1 && has_whole_packs(a) && arrivals != nullptr && a.batch * a.groups <= kArrivals;
}

template <class T>
void launch_step(const Call& a, const Workspace& workspace, uint32_t* arrivals, Stream stream) {
  const StepLayout layout(a.state);
  with_type(a.ssm_type, [&](auto state) {
    launch(scan_step<T, decltype(state)>, grid_of(a, blocks_of_group(a), a.groups), kStepThreads,
           sizeof(StepEnd) + static_cast<size_t>(StepInputs::bytes(layout)), stream, a, layout, workspace.scanned,
           workspace.squares, arrivals);
  });
}

template <class T>
void launch_steps(const Call& a, const Workspace& workspace, Stream stream) {
  const StepLayout layout(a.state);
  with_type(a.ssm_type, [&](auto state) {
    using S = decltype(state);
    const auto kernel = has_whole_packs(a) ? scan_steps<T, S, kPackBytes / sizeof(S)> : scan_steps<T, S, 1>;
    launch(kernel, grid_of(a, blocks_of_group(a), a.groups), kStepThreads,
           2 * static_cast<size_t>(StepInputs::bytes(layout)), stream, a, layout, workspace.scanned);
  });
}

template <class T>
void launch_finish(const Call& a, const Workspace& workspace, Stream stream) {
  const dim3 grid(static_cast<unsigned>(a.batch * std::max<int64_t>(a.length, 1)), static_cast<unsigned>(a.groups));
  const bool fours = a.s.width % 4 == 0 && a.s.proj_dim % 4 == 0;
  launch(fours ? finish<T, 4> : finish<T, 1>, grid, finish_threads(a.s.width), finish_shared_bytes(a.s.width), stream,
         a, workspace.scanned);
}

template <class T, int kState>
void launch_scan(const Call& a, const Workspace& workspace, Stream stream) {
  const int64_t tiles = a.head_dim / kTile;
  int64_t warps = kMostWarps;
  while (ChunkShared<T, kState>::bytes(static_cast<int>(warps) * kTile) > kLargestShared) --warps;
  const int64_t parts = (tiles + warps - 1) / warps;
  warps = (tiles + parts - 1) / parts;  // equal parts
  launch(scan_chunks<T, kState>, grid_of(a, parts, a.heads), static_cast<unsigned>(warps) * kWarp,
         ChunkShared<T, kState>::bytes(static_cast<int>(warps) * kTile), stream, a, workspace.chunks,
         workspace.scanned);
}

template <class T>
void launch_chunks(const Call& a, const Workspace& workspace, Stream stream) {
  const int per = a.s.proj_dim % kConvolvePair == 0 ? kConvolvePair : 1;  // x, B and C have even widths here
  const dim3 strips = grid_of(a, blocks(a.s.conv_dim, kConvolveThreads * per), blocks(a.length, kStrip));
  launch(per == 1 ? convolve_all<T, 1> : convolve_all<T, kConvolvePair>, strips, kConvolveThreads, 0, stream, a,
         static_cast<T*>(workspace.chunks.xbc));
  launch(prepare_chunks<T>, grid_of(a, chunks_of(a.length), a.groups), kScoreThreads, score_shared_bytes(a.state),
         stream, a, workspace.chunks);
  if (a.state <= 64) return launch_scan<T, 64>(a, workspace, stream);
  if (a.state <= 128) return launch_scan<T, 128>(a, workspace, stream);
  launch_scan<T, 256>(a, workspace, stream);
}

}  // namespace

const char* mamba2_mixer_unsupported(const Mamba2MixerArgs& a) {
  if (!floating(a.type)) return "expected activations in float32, float16 or bfloat16";
  if (!floating(a.ssm_type)) return "expected a state in float32, float16 or bfloat16";
  if (a.groups < 1 || a.heads < 1 || a.heads % a.groups != 0) return "expected heads to be a multiple of groups";
  if (a.head_dim < 1 || a.kernel < 2) return "expected a head_dim of at least 1 and a convolution of at least 2 taps";
  if (a.state < 1 || a.state > kLargestState) return "expected a state of 1 to 256";
  if (a.heads > kLargestGrid || a.batch > kLargestGrid) return "expected at most 65,535 heads and rows of the batch";
  const Mamba2MixerSizes s(a);
  if (finish_shared_bytes(s.inner / a.groups) > kLargestShared) return "expected at most 25,000 channels in a group";
  if (s.proj_dim > INT32_MAX) return "expected sizes whose sum fits 32 bits";
  return nullptr;
}

size_t mamba2_mixer_workspace(const Mamba2MixerArgs& args) { return Workspace(args, nullptr).bytes(); }

void mamba2_mixer(const Mamba2MixerArgs& args, void* memory, uint32_t* arrivals, Stream stream) {
  if (const char* reason = mamba2_mixer_unsupported(args)) {
    throw std::invalid_argument(std::string("mamba2_mixer: ") + reason + ".");
  }
  const Call call(args);
  const Workspace workspace(args, memory);
  with_type(args.type, [&](auto activation) {
    using T = decltype(activation);
    if (ends_in_place(args, arrivals)) return launch_step<T>(call, workspace, arrivals, stream);
    if constexpr (!std::is_same_v<T, float>) {
      if (in_chunks(args)) launch_chunks<T>(call, workspace, stream);
    }
    if (!in_chunks(args)) launch_steps<T>(call, workspace, stream);
    launch_finish<T>(call, workspace, stream);
  });
}

}  // namespace edge::cuda
