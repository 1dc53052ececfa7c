// How a block of attention on tensor cores is laid out: rows and keys among its warps, tiles in its shared memory.
#pragma once

#include "cache_tile.cuh"

namespace edge::cuda::attention {

// How a block of kWarps warps divides its work: kRowWarps by kKeyWarps, a warp having kRowTiles times 16 rows.
template <int kHeadDim, bool kDecode>
struct Division {
  static constexpr int kRowWarps = !kDecode ? kWarps : kHeadDim > 128 ? 2 : 1;
  static constexpr int kKeyWarps = kWarps / kRowWarps;
  static constexpr int kRowTiles = !kDecode && kHeadDim <= 128 ? 2 : 1;
  static constexpr int kWarpRows = kRowTiles * 16;
  static constexpr int kTileRows = kRowWarps * kWarpRows;
  static constexpr int kWarpKeys = kDecode || kHeadDim > 128 ? 16 : kHeadDim > 80 ? 32 : 64;
  static constexpr int kKeys = kKeyWarps * kWarpKeys;
  static_assert(kKeyStep % kKeys == 0, "a tile is part of one split");
};

// Where a block's shared memory holds what. The sums of key warps take the place of everything else at the end.
template <class C, int kHeadDim, bool kDecode>
struct SharedLayout {
  using D = Division<kHeadDim, kDecode>;
  using Stored = CacheTile<C, kHeadDim, D::kKeys>;
  using Operand = CacheTile<float16, kHeadDim, D::kKeys>;
  using Query = CacheTile<float16, kHeadDim, D::kTileRows>;
  static constexpr bool kConverts = sizeof(C) == 1;
  static constexpr int kScaleBytes = kConverts ? 2 * D::kKeys * static_cast<int>(sizeof(float)) : 0;
  static constexpr int kStageBytes = 2 * Stored::kBytes + kScaleBytes;  // keys, values, their scales
  static constexpr int kQuery = 2 * kStageBytes;
  static constexpr int kOperands = kQuery + Query::kBytes;  // keys and values in float16, if they are converted
  static constexpr int kBytes = kOperands + (kConverts ? 2 * Operand::kBytes : 0);
  // A row's sums, 8 floats apart from the next row's banks, and its largest exponent and total.
  static constexpr int kSumStride = kHeadDim + 8;
  static constexpr int kStats = D::kKeyWarps * D::kTileRows * kSumStride * static_cast<int>(sizeof(float));
  static constexpr int kMergeBytes = kStats + D::kKeyWarps * D::kTileRows * static_cast<int>(sizeof(float2));
  static_assert(D::kKeyWarps == 1 || kMergeBytes <= kBytes, "the sums fit");
  static_assert(kBytes <= 99 << 10, "as much as a block may have on compute capability 8.6, 8.9 and 12.0");
};

}  // namespace edge::cuda::attention
