// Chooses among the kernels for products and launches them.
#include "plain_product.cuh"
#include "slice_product.cuh"
#include "tile_product.cuh"
#include "weight_products.h"

namespace edge::cuda {
namespace {

constexpr int kEnoughBlocks = 256;  // two for each of a large GPU's multiprocessors
constexpr int kFewRowsPerMatrix = 16;
constexpr int kFewRowsToCombine = 64;  // by the blocks that have arrived last
constexpr unsigned kCombineThreads = 128;

constexpr unsigned tiles_of(int64_t count, int64_t per_tile) {
  return static_cast<unsigned>((count + per_tile - 1) / per_tile);
}

template <class T>
struct Is {  // names a type as a function's argument
  using type = T;
};

// Calls f(Is<T>) with the activations' type.
template <class F>
void for_half(Type type, const F& f) {
  type == Type::kFloat16 ? f(Is<float16>()) : f(Is<bfloat16>());
}
template <class F>
void for_float(Type type, const F& f) {
  type == Type::kFloat32 ? f(Is<float>()) : for_half(type, f);
}

// Calls f(Is<Stored>) with a format that tensor cores take.
template <class F>
void for_format(WeightFormat format, const F& f) {
  switch (format) {
    case WeightFormat::kFloat16:
      return f(Is<float16>());
    case WeightFormat::kBfloat16:
      return f(Is<bfloat16>());
    case WeightFormat::kInt8:
      return f(Is<int8_t>());
    case WeightFormat::kInt4:
      return f(Is<Int4>());
    case WeightFormat::kFloat32:
      break;
  }
  throw std::invalid_argument("float32 weights are not for tensor cores");
}

template <class T>
PlainReader<T> plain_reader(const Inputs& inputs, const Weight& weight) {
  return {static_cast<const T*>(inputs.x), inputs.source, static_cast<int>(weight.in)};
}

template <class T, class Reader>
void launch_plain(const RowGroups& groups, const Weight& weight, const Reader& read, const PartialSums& outputs,
                  Stream stream) {
  const dim3 grid(tiles_of(weight.out, kPlainColumns), static_cast<unsigned>(most_tiles(groups, kPlainRows)));
  launch(plain_product<T, Reader>, grid, kPlainColumns, kPlainRows * kPlainStep * sizeof(float), stream, groups, weight,
         read, outputs);
}

template <class T, class Reader>
void launch_slices(const RowGroups& groups, const Weight& weight, const Reader& read, const PartialSums& outputs,
                   const Ending& ending, Stream stream) {
  for_format(weight.format, [&](auto stored) {
    using Stored = typename decltype(stored)::type;
    const dim3 grid(tiles_of(weight.out, SliceSizes<Stored>::kColumns),
                    static_cast<unsigned>(most_tiles(groups, kSliceRows)), static_cast<unsigned>(outputs.slices));
    const int pitch = slice_pitch<Stored>(weight, outputs.slices);
    launch(slice_product<T, Stored, Reader>, grid, kSliceWarps * kWarp, slice_bytes<T, Stored>(pitch), stream, groups,
           weight, read, outputs, pitch, ending);
  });
}

template <class T, class Reader>
void launch_partial(const RowGroups& groups, const Weight& weight, const Reader& read, Type type,
                    const PartialSums& outputs, Stream stream) {
  if constexpr (!std::is_same_v<T, float>) {
    if (fits_tensor_cores(weight, type)) return launch_slices<T>(groups, weight, read, outputs, {}, stream);
  }
  launch_plain<T>(groups, weight, read, outputs, stream);
}

template <class T, int kRows>
void launch_tiles(const RowGroups& groups, const Weight& weight, const Inputs& inputs, Activation activation, void* y,
                  Stream stream) {
  const int per_half = activation == Activation::kSiluGated ? kTileColumns / 2 : kTileColumns;
  const int64_t half = activation == Activation::kSiluGated ? weight.out / 2 : weight.out;
  const int row_tiles = most_tiles(groups, kRows), column_tiles = static_cast<int>(tiles_of(half, per_half));
  for_format(weight.format, [&](auto stored) {
    using Stored = typename decltype(stored)::type;
    launch(tile_product<T, Stored, kRows>, dim3(static_cast<unsigned>(row_tiles * column_tiles)), kTileThreads,
           tile_bytes<Stored, kRows>(), stream, groups, weight, static_cast<const T*>(inputs.x), inputs.source,
           activation, static_cast<T*>(y), row_tiles, column_tiles);
  });
}

// ---- Combining ----

// Grid: (tokens, tiles of columns). A thread has kPer columns.
template <class T, int kPer, class Reader>
__global__ void combine_products(Combination c, Reader reader, T* y) {
  const int column = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x) * kPer;
  if (column < c.width) combine_columns<T, kPer>(c, reader, static_cast<int>(blockIdx.x), column, y);
}

template <class T, class Reader>
void launch_combine(const Combination& c, const Reader& reader, void* y, Stream stream) {
  constexpr int kMost = 4;
  const bool fours = c.width % kMost == 0;
  const dim3 grid(static_cast<unsigned>(c.tokens), tiles_of(c.width, kCombineThreads * (fours ? kMost : 1)));
  launch(fours ? combine_products<T, kMost, Reader> : combine_products<T, 1, Reader>, grid, kCombineThreads, 0, stream,
         c, reader, static_cast<T*>(y));
}

// Whether the last blocks may combine: they are few, and what they do must not take longer than another launch.
bool ends_in_place(const RowGroups& groups, const Weight& weight, const uint32_t* arrivals) {
  constexpr int64_t kFewestColumns = 64;  // of a tile
  return arrivals != nullptr && groups.rows <= kFewRowsToCombine && weight.out <= kFewestColumns * kArrivals;
}

template <class T, class Reader>
void launch_combined(const RowGroups& groups, const Weight& weight, const Reader& read, Type type,
                     const PartialSums& sums, const Combination& combination, void* y, uint32_t* arrivals,
                     Stream stream) {
  if constexpr (!std::is_same_v<T, float>) {
    if (fits_tensor_cores(weight, type) && ends_in_place(groups, weight, arrivals)) {
      return launch_slices<T>(groups, weight, read, sums, {combination, y, arrivals}, stream);
    }
  }
  launch_partial<T>(groups, weight, read, type, sums, stream);
  launch_combine<T>(combination, SumReader{sums}, y, stream);
}

}  // namespace

int slices_of(const Weight& weight, Type type, int rows) {
  if (!fits_tensor_cores(weight, type)) return 1;
  int64_t slices = 1;
  for_format(weight.format, [&](auto stored) {
    using Sizes = SliceSizes<typename decltype(stored)::type>;
    const int64_t blocks = tiles_of(weight.out, Sizes::kColumns) * int64_t{rows};
    const int64_t wanted = (kEnoughBlocks + blocks - 1) / blocks;
    const int64_t sensible = weight.in / Sizes::kUnit / (2 * kSliceWarps);  // at least two units for a warp
    slices = std::max({int64_t{1}, (weight.in + kLongestSlice - 1) / kLongestSlice, std::min(wanted, sensible)});
  });
  return static_cast<int>(slices);
}

void partial_products(const RowGroups& groups, const Weight& weight, const Inputs& inputs, const PartialSums& outputs,
                      Stream stream) {
  for_float(inputs.type, [&](auto t) {
    using T = typename decltype(t)::type;
    launch_partial<T>(groups, weight, plain_reader<T>(inputs, weight), inputs.type, outputs, stream);
  });
}

void combined_products(const RowGroups& groups, const Weight& weight, const Inputs& inputs, const PartialSums& sums,
                       const Combination& combination, void* y, uint32_t* arrivals, Stream stream) {
  for_float(inputs.type, [&](auto t) {
    using T = typename decltype(t)::type;
    launch_combined<T>(groups, weight, plain_reader<T>(inputs, weight), inputs.type, sums, combination, y, arrivals,
                       stream);
  });
}

void combined_products(const RowGroups& groups, const Weight& weight, const ActivatedInputs& inputs,
                       const PartialSums& sums, const Combination& combination, void* y, uint32_t* arrivals,
                       Stream stream) {
  for_float(inputs.type, [&](auto t) {
    const ActivatedReader read{inputs.activation, inputs.risen};
    launch_combined<typename decltype(t)::type>(groups, weight, read, inputs.type, sums, combination, y, arrivals,
                                                stream);
  });
}

void tile_products(const RowGroups& groups, const Weight& weight, const Inputs& inputs, Activation activation, void* y,
                   Stream stream) {
  for_half(inputs.type, [&](auto t) {
    using T = typename decltype(t)::type;
    const auto launcher =
        groups.rows <= groups.matrices * kFewRowsPerMatrix ? launch_tiles<T, 16> : launch_tiles<T, 64>;
    launcher(groups, weight, inputs, activation, y, stream);
  });
}

void combine(const Combination& combination, const void* products, Type type, void* y, Stream stream) {
  for_float(type, [&](auto t) {
    using T = typename decltype(t)::type;
    const RowReader<T> reader{static_cast<const T*>(products), combination.width};
    launch_combine<T>(combination, reader, y, stream);
  });
}

}  // namespace edge::cuda
