// Rows of activations times weights on the GPU, each row times the matrix that it belongs to.
//
// Rows stand in the order of their matrices, so that tiles of rows share a matrix and its weights are read once for a
// tile. How many tiles there are is known on the device alone: grids have room for the most there can be, and blocks
// without a tile end.
//
// Three kernels: slices for few rows (slice_product.cuh), tiles for many (tile_product.cuh), both on tensor cores, and
// a plain one for what those do not take (plain_product.cuh).
#pragma once

#include "activation.h"
#include "stream.h"
#include "weight.h"

namespace edge::cuda {

// More would not fit a grid's second axis, eight to a block.
constexpr int64_t kMostRows = 1 << 18;

// Which rows belong to which matrix.
struct RowGroups {
  const int32_t* first;  // (matrices + 1): the first row of each, and the number of rows; null: all are of matrix 0
  int matrices;
  int rows;
};

// Sums over parts of `in`, in float32: (slices, rows, out). The product is their sum, from slice 0 on.
struct PartialSums {
  float* sums;
  int slices;
  int rows;
  int out;
};

// A product's rows of inputs: those of x, or the activation of another product.
struct Inputs {
  Type type;
  const void* x;          // (any, in)
  const int32_t* source;  // (rows): the row of x that each one is; null: row r is x's row r
};
struct ActivatedInputs {
  Type type;  // to which they are rounded
  Activation activation;
  PartialSums risen;  // out: in, twice that if gated
};

// Into how many parts few rows' products are divided, so that a large GPU has enough to do at `rows` rows or more.
// Rows beyond are no reason to divide less: a token's result does not depend on how many others there are.
int slices_of(const Weight& weight, Type type, int rows);

// What belongs to a token: y[token] = sum over k < top_k, in order, of shares[token, k] * products[position[token, k]].
struct Combination {
  int tokens;
  int top_k;
  int width;
  const float* shares;      // (tokens, top_k); null: 1
  const int32_t* position;  // (tokens, top_k); null: the token
};

// Any number of rows; made for few. Every weight is read once for 8 rows of its matrix.
void partial_products(const RowGroups& groups, const Weight& weight, const Inputs& inputs, const PartialSums& outputs,
                      Stream stream);

// The same and their combination: y (tokens, width) of the inputs' type. `sums` is room for what stands between. With
// arrivals (arrivals.h), which may be null, few rows take one kernel.
void combined_products(const RowGroups& groups, const Weight& weight, const Inputs& inputs, const PartialSums& sums,
                       const Combination& combination, void* y, uint32_t* arrivals, Stream stream);
void combined_products(const RowGroups& groups, const Weight& weight, const ActivatedInputs& inputs,
                       const PartialSums& sums, const Combination& combination, void* y, uint32_t* arrivals,
                       Stream stream);

// Many rows, on tensor cores (fits_tensor_cores): y (rows, out), half as wide if gated, of the inputs' type. A gated
// weight's half must be a multiple of 32 columns.
void tile_products(const RowGroups& groups, const Weight& weight, const Inputs& inputs, Activation activation, void* y,
                   Stream stream);

// y (tokens, width) of `type`, from products in rows (any, width) of that type.
void combine(const Combination& combination, const void* products, Type type, void* y, Stream stream);

}  // namespace edge::cuda
