// The functions that add an operator's CUDA kernel to the test module; each stands in cuda_<operator>.cc.
#pragma once

#include <pybind11/pybind11.h>

namespace edge::test {

void bind_cached_attention(pybind11::module_& m);
void bind_mamba2_mixer(pybind11::module_& m);
void bind_moe(pybind11::module_& m);
void bind_qlinear(pybind11::module_& m);

}  // namespace edge::test
