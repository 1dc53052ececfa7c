// The CUDA kernels on NumPy arrays, for tests: on a GPU (_cuda), or on its model on the host (_cuda_emulated).
#include "cuda_module.h"

#include "device_array.h"
#if defined(EDGE_EMULATE_CUDA)
#include "../edge_plugins/native/device.h"
#endif

PYBIND11_MODULE(EDGE_MODULE_NAME, m) {
  using namespace edge::test;
  namespace py = pybind11;
#if defined(EDGE_EMULATE_CUDA)
  m.def("set_schedule", &edge::emulated::set_schedule, "Order of threads: 0 forward, 1 backward, else a seed.");
#endif
  // Local, since tests load two such modules: for GPUs and for the model of one.
  py::class_<Call>(m, "Call", py::module_local())
      .def(
          "start", [](Call& call, uintptr_t stream) { call.start(reinterpret_cast<edge::Stream>(stream)); },
          py::arg("stream") = 0, "Queues the kernels on a stream, given by its address, and waits for nothing.")
      .def("result", &Call::result, "The outputs of what was started.")
      .def("leave_out_arrivals", &Call::leave_out_arrivals, "As calls must do that have no counters of arrivals.")
      .def("run", &Call::run, "Starts the kernels, waits for them and returns the outputs.");
  bind_cached_attention(m);
  bind_mamba2_mixer(m);
  bind_moe(m);
  bind_qlinear(m);
}
