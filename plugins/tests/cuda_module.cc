// The CUDA kernels on NumPy arrays, for tests: on a GPU (_cuda), or on its model on the host (_cuda_emulated).
#include "cuda_module.h"

#include "device_array.h"

PYBIND11_MODULE(EDGE_MODULE_NAME, m) {
  using namespace edge::test;
#if defined(EDGE_EMULATE_CUDA)
  m.def("set_schedule", &edge::emulated::set_schedule, "Order of threads: 0 forward, 1 backward, else a seed.");
#endif
  bind_cached_attention(m);
  bind_mamba2_mixer(m);
  bind_moe(m);
  bind_qlinear(m);
}
