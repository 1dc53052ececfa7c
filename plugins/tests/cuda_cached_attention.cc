// edge::CachedAttention's CUDA kernels on NumPy arrays.
#include <pybind11/stl.h>

#include <optional>

#include "../edge_plugins/cached_attention/cuda.h"
#include "cuda_module.h"
#include "device_array.h"

namespace edge::test {
namespace {

using cuda::CachedAttentionArgs;
using Cache = std::optional<py::array>;

// The sizes, from arrays that agree with each other.
CachedAttentionArgs sizes_of(const Floats& query, const Floats& key, const Floats& value,
                             const Array<int64_t>& past_length, const py::array& past_key, const py::array& past_value,
                             const Cache& past_key_scale, const Cache& past_value_scale) {
  expect(query, "query", {-1, -1, -1});
  expect(past_key, "past_key", {query.shape(0), -1, -1, -1});
  CachedAttentionArgs a{};
  a.batch = query.shape(0);
  a.length = query.shape(1);
  a.kv_heads = past_key.shape(1);
  a.capacity = past_key.shape(2);
  a.head_dim = past_key.shape(3);
  a.heads = query.shape(2) / a.head_dim;
  a.cache_type = type_of(past_key, "past_key");
  const int64_t key_width = a.kv_heads * a.head_dim;
  expect(query, "query", {a.batch, a.length, a.heads * a.head_dim});
  expect(key, "key", {a.batch, a.length, key_width});
  expect(value, "value", {a.batch, a.length, key_width});
  expect(past_length, "past_length", {a.batch});
  expect(past_value, "past_value", {a.batch, a.kv_heads, a.capacity, a.head_dim});
  for (const Cache& scales : {past_key_scale, past_value_scale}) {
    if (scales.has_value() != (a.cache_type == Type::kInt8))
      throw std::invalid_argument("scales: expected beside int8");
    if (scales) expect(*scales, "scales of the cache", {a.batch, a.kv_heads, a.capacity});
  }
  return a;
}

// A past and a present array of the cache on the device.
struct State {
  State(Device& device, const py::array& array, bool inplace)
      : given(array), past(device.upload(array)), present(present_of(device, past, array, inplace)) {}
  py::array result(const Device& device) const {
    return device.download(present, given.dtype(), {given.shape(), given.shape() + given.ndim()});
  }

  py::array given;
  void* past;
  void* present;
};

class CachedAttentionCall : public Call {
 public:
  CachedAttentionCall(const Floats& query, const Floats& key, const Floats& value, const Array<int64_t>& past_length,
                      const py::array& past_key, const py::array& past_value, float scale, int64_t window,
                      const Cache& past_key_scale, const Cache& past_value_scale, bool inplace,
                      const std::string& type);
  void start(Stream stream) override { cuda::cached_attention(args_, workspace_, stream); }
  py::object result() const override;

 private:
  Device device_;
  CachedAttentionArgs args_;
  std::vector<State> states_;
  void* workspace_;
};

CachedAttentionCall::CachedAttentionCall(const Floats& query, const Floats& key, const Floats& value,
                                         const Array<int64_t>& past_length, const py::array& past_key,
                                         const py::array& past_value, float scale, int64_t window,
                                         const Cache& past_key_scale, const Cache& past_value_scale, bool inplace,
                                         const std::string& type)
    : args_(sizes_of(query, key, value, past_length, past_key, past_value, past_key_scale, past_value_scale)) {
  states_ = {{device_, past_key, inplace}, {device_, past_value, inplace}};
  if (past_key_scale) states_.emplace_back(device_, *past_key_scale, inplace);
  if (past_value_scale) states_.emplace_back(device_, *past_value_scale, inplace);
  CachedAttentionArgs& a = args_;
  a.type = activation_type(type);
  a.window = window;
  a.scale = scale;
  a.query = device_.upload_as(query, a.type);
  a.key = device_.upload_as(key, a.type);
  a.value = device_.upload_as(value, a.type);
  a.past_length = device_.upload<int64_t>(past_length);
  a.past_key = states_[0].past;
  a.past_value = states_[1].past;
  a.present_key = states_[0].present;
  a.present_value = states_[1].present;
  if (states_.size() == 4) {
    a.past_key_scale = static_cast<const float*>(states_[2].past);
    a.past_value_scale = static_cast<const float*>(states_[3].past);
    a.present_key_scale = static_cast<float*>(states_[2].present);
    a.present_value_scale = static_cast<float*>(states_[3].present);
  }
  const size_t elements = static_cast<size_t>(query.size());
  a.y = device_.room(elements * size_of(a.type));
  workspace_ = device_.room(cuda::cached_attention_workspace(a));
}

py::object CachedAttentionCall::result() const {
  const CachedAttentionArgs& a = args_;
  py::list outputs;
  outputs.append(device_.download_as(a.y, a.type, {a.batch, a.length, a.heads * a.head_dim}));
  for (const State& state : states_) outputs.append(state.result(device_));
  return py::tuple(outputs);
}

// Of float16 activations.
size_t attention_workspace(int64_t batch, int64_t length, int64_t heads, int64_t kv_heads, int64_t head_dim,
                           int64_t capacity) {
  CachedAttentionArgs a{};
  a.batch = batch;
  a.length = length;
  a.heads = heads;
  a.kv_heads = kv_heads;
  a.head_dim = head_dim;
  a.capacity = capacity;
  a.type = a.cache_type = Type::kFloat16;
  return cuda::cached_attention_workspace(a);
}

}  // namespace

void bind_cached_attention(py::module_& m) {
  using py::arg;
  const auto none = py::none();
  py::class_<CachedAttentionCall, Call>(m, "cached_attention", py::module_local())
      .def(py::init<const Floats&, const Floats&, const Floats&, const Array<int64_t>&, const py::array&,
                    const py::array&, float, int64_t, const Cache&, const Cache&, bool, const std::string&>(),
           py::kw_only(), arg("query"), arg("key"), arg("value"), arg("past_length"), arg("past_key"),
           arg("past_value"), arg("scale"), arg("window"), arg("past_key_scale") = none, arg("past_value_scale") = none,
           arg("inplace") = false, arg("type") = "float32");
  m.def("cached_attention_workspace", &attention_workspace, py::kw_only(), arg("batch"), arg("length"), arg("heads"),
        arg("kv_heads"), arg("head_dim"), arg("capacity"));
}

}  // namespace edge::test
