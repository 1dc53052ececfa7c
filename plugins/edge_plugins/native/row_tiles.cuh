// Finds a block's tile of rows, and the number of tiles that a grid must have room for.
#pragma once

#include <algorithm>

#include "device.h"
#include "weight_products.h"

namespace edge::cuda {

struct RowTile {
  int matrix;
  int first;
  int count;  // 0: there is no such tile
};

// The most tiles that `rows` rows make: each matrix may leave one that is not full.
inline int most_tiles(const RowGroups& groups, int tile_rows) {
  if (groups.first == nullptr) return (groups.rows + tile_rows - 1) / tile_rows;
  return std::min(groups.rows, groups.rows / tile_rows + groups.matrices);
}

// The tile of that number, for all lanes of a warp. Each lane counts the tiles of a share of the matrices.
template <int kRows>
__device__ inline RowTile find_tile(const RowGroups& groups, int index) {
  if (groups.first == nullptr) {
    const int first = index * kRows;
    return {0, first, max(0, min(kRows, groups.rows - first))};
  }
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int share = (groups.matrices + kWarp - 1) / kWarp;
  const int begin = min(lane * share, groups.matrices), end = min(begin + share, groups.matrices);
  const auto tiles_of = [&](int m) { return (groups.first[m + 1] - groups.first[m] + kRows - 1) / kRows; };
  int tiles = 0;
  for (int m = begin; m < end; ++m) tiles += tiles_of(m);
  int up_to = tiles;  // and with those of the lanes before
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const int before = __shfl_up_sync(kAllLanes, up_to, static_cast<unsigned>(distance));
    if (lane >= distance) up_to += before;
  }
  const unsigned beyond = __ballot_sync(kAllLanes, index < up_to);
  if (beyond == 0) return {0, 0, 0};
  const int owner = __ffs(static_cast<int>(beyond)) - 1;
  int matrix = begin, left = index - (up_to - tiles);
  if (lane == owner) {
    for (; left >= tiles_of(matrix); ++matrix) left -= tiles_of(matrix);
  }
  matrix = __shfl_sync(kAllLanes, matrix, owner);
  const int first = groups.first[matrix] + __shfl_sync(kAllLanes, left, owner) * kRows;
  return {matrix, first, min(kRows, groups.first[matrix + 1] - first)};
}

}  // namespace edge::cuda
