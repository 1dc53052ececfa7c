// A CUDA stream as a name alone, for headers that must not need CUDA's.
#pragma once

struct CUstream_st;

namespace edge {

using Stream = CUstream_st*;  // cudaStream_t

}  // namespace edge
