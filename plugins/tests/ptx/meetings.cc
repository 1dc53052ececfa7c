// What a warp's lanes do together: exchanges and products of matrices.
#include <algorithm>
#include <cmath>

#include "registers.h"

namespace edge::ptx {
namespace {

void require_all(Warp& warp, const Instruction& in, int mask) {
  for (const uint64_t bits : warp.value(mask)) {
    if (get<uint32_t>(bits) != kAllLanes) warp.fail(in, "a mask that is not all lanes");
  }
}

void warp_barrier(Warp& warp, const Instruction& in, uint32_t) {
  require_all(warp, in, in.operands[0]);
  warp.pass_warp_barrier();
}

enum class Shuffle { kUp, kDown, kXor, kIndex };

// shfl.sync d|p, a, b, c, mask.
template <Shuffle kMode>
void shuffle(Warp& warp, const Instruction& in, uint32_t) {
  const bool with_predicate = in.operands.size() == 6;
  const int* from = &in.operands[with_predicate ? 2 : 1];
  require_all(warp, in, from[3]);
  const Register a = warp.value(from[0]), b = warp.value(from[1]), c = warp.value(from[2]);
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    const auto by = static_cast<unsigned>(b[lane] & 31), clamp = static_cast<unsigned>(c[lane] & 31);
    const auto segment = static_cast<unsigned>(c[lane] >> 8 & 31);
    const unsigned last = (lane & segment) | (clamp & ~segment), first = lane & segment;
    const unsigned j = kMode == Shuffle::kUp     ? lane - by
                       : kMode == Shuffle::kDown ? lane + by
                       : kMode == Shuffle::kXor  ? lane ^ by
                                                 : first | (by & ~segment);
    const bool within = kMode == Shuffle::kUp ? static_cast<int>(j) >= static_cast<int>(last) : j <= last;
    warp.value(in.operands[0])[lane] = get<uint32_t>(a[within ? j : lane]);
    if (with_predicate) warp.value(in.operands[1])[lane] = within ? 1 : 0;
  }
}

void ballot(Warp& warp, const Instruction& in, uint32_t) {
  require_all(warp, in, in.operands[2]);
  uint32_t bits = 0;
  for (unsigned lane = 0; lane < kLanes; ++lane)
    bits |= static_cast<uint32_t>(warp.value(in.operands[1])[lane] & 1) << lane;
  warp.value(in.operands[0]).fill(bits);
}

void largest(Warp& warp, const Instruction& in, uint32_t) {
  require_all(warp, in, in.operands[2]);
  uint32_t most = 0;
  for (const uint64_t bits : warp.value(in.operands[1])) most = std::max(most, get<uint32_t>(bits));
  warp.value(in.operands[0]).fill(most);
}

// mma.m16n8k16, "Matrix Fragments for mma.m16n8k16 with floating point type". Of what tensor cores do with their sums
// only so much is known that they do not round to the nearest; here eight products are added to one and cut.
template <class T>
void multiply_matrices(Warp& warp, const Instruction& in, uint32_t) {
  const auto element = [&](int from, unsigned lane, unsigned i) {
    const auto pair = get<uint32_t>(warp.value(in.operands[static_cast<size_t>(from) + i / 2])[lane]);
    return wide(T{static_cast<uint16_t>(i % 2 == 0 ? pair : pair >> 16)});
  };
  float a[16][16], b[16][8], d[16][8];
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    const unsigned group = lane / 4, within = lane % 4;
    for (unsigned i = 0; i < 8; ++i) {
      const unsigned row = group + (i % 4 < 2 ? 0 : 8), column = within * 2 + i % 2 + (i < 4 ? 0 : 8);
      a[row][column] = element(4, lane, i);
    }
    for (unsigned i = 0; i < 4; ++i) b[within * 2 + i % 2 + (i < 2 ? 0 : 8)][group] = element(8, lane, i);
    for (unsigned i = 0; i < 4; ++i) {
      d[group + (i < 2 ? 0 : 8)][within * 2 + i % 2] = get<float>(warp.value(in.operands[10 + i])[lane]);
    }
  }
  for (auto& row : d) {
    for (unsigned n = 0; n < 8; ++n) {
      for (unsigned begin = 0; begin < 16; begin += 8) {
        double sum = row[n];
        for (unsigned k = begin; k < begin + 8; ++k) sum += double{a[&row - d][k]} * b[k][n];
        const auto nearest = static_cast<float>(sum);
        row[n] =
            std::fabs(double{nearest}) > std::fabs(sum) && std::isfinite(sum) ? std::nextafter(nearest, 0.0f) : nearest;
      }
    }
  }
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    for (unsigned i = 0; i < 4; ++i) {
      warp.value(in.operands[i])[lane] = put(d[lane / 4 + (i < 2 ? 0 : 8)][lane % 4 * 2 + i % 2]);
    }
  }
}

}  // namespace

void add_meetings(Table& table) {
  table["bar.warp.sync"] = {Kind::kWarp, warp_barrier, 0};
  table["shfl.sync.up.b32"] = {Kind::kWarp, shuffle<Shuffle::kUp>, 0};
  table["shfl.sync.down.b32"] = {Kind::kWarp, shuffle<Shuffle::kDown>, 0};
  table["shfl.sync.bfly.b32"] = {Kind::kWarp, shuffle<Shuffle::kXor>, 0};
  table["shfl.sync.idx.b32"] = {Kind::kWarp, shuffle<Shuffle::kIndex>, 0};
  table["vote.sync.ballot.b32"] = {Kind::kWarp, ballot, 0};
  table["redux.sync.max.u32"] = {Kind::kWarp, largest, 0};
  table["mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"] = {Kind::kWarp, multiply_matrices<Half>, 0};
  table["mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"] = {Kind::kWarp, multiply_matrices<Brain>, 0};
}

}  // namespace edge::ptx
