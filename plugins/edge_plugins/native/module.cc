// The kernels on NumPy arrays, for tests, tools and benchmarks: edge_plugins.native._native.
#include <pybind11/stl.h>

#include <optional>
#include <variant>

#include "arrays.h"
#include "memory.h"

namespace edge {
namespace {

// One matrix, or as many as there are experts, packed once.
class Packed {
 public:
  Packed(const py::array& weight, const std::optional<Floats>& scales, int64_t block_size, int bits) {
    if (weight.ndim() != 2 && weight.ndim() != 3) expect(weight, "weight", {-1, -1});
    const py::ssize_t axes = weight.ndim();
    shape_.in = weight.shape(axes - 2);
    shape_.out = weight.shape(axes - 1);
    const Type type = type_of(weight, "weight");
    shape_.format = type == Type::kFloat32                    ? Format::kFloat32
                    : type != Type::kInt8                     ? Format::kBfloat16
                    : bits == 4 || dtype_of(weight) == "int4" ? Format::kInt4
                                                              : Format::kInt8;
    if (type == Type::kFloat16) throw std::invalid_argument("weight: expected no float16. Convert it to bfloat16.");
    if (scales.has_value() != (type == Type::kInt8)) {
      throw std::invalid_argument("scales: expected with integers and only with them.");
    }
    if (scales) shape_.block = block_size;
    if (const char* reason = unpackable(shape_)) {
      throw std::invalid_argument("weight: expected one that can be packed, found " + shape_text(weight) + ": " +
                                  reason);
    }
    const int64_t count = axes == 3 ? weight.shape(0) : 1;
    const int64_t scale_count = scales ? shape_.in / shape_.block * shape_.out : 0;
    if (scales) {
      if (scales->size() != count * scale_count)
        expect(*scales, "scales", {count, shape_.in / shape_.block, shape_.out});
      shape_.half_scales = fits_float16(scales->data(), scales->size());
    }
    pack_all(py::array::ensure(weight, py::array::c_style), scales, count, scale_count);
  }

  const PackedMatrix* data() const { return matrices_.data(); }
  const PackedMatrix& first() const { return matrices_[0]; }
  int64_t count() const { return static_cast<int64_t>(matrices_.size()); }
  size_t bytes() const { return matrices_.size() * shape_.bytes(); }

 private:
  // Integers -8..7 of a byte each, two to a byte with the first in the low half, as ONNX has them.
  static std::vector<uint8_t> nibbles(const uint8_t* values, size_t count) {
    std::vector<uint8_t> bytes((count + 1) / 2);
    for (size_t i = 0; i < count; ++i) bytes[i / 2] |= static_cast<uint8_t>((values[i] & 15) << (i % 2 * 4));
    return bytes;
  }

  void pack_all(const py::array& weight, const std::optional<Floats>& scales, int64_t count, int64_t scale_count) {
    const auto* values = static_cast<const uint8_t*>(weight.data());
    const size_t each = static_cast<size_t>(shape_.in * shape_.out) * static_cast<size_t>(weight.itemsize());
    memory_ = new_memory(static_cast<uint64_t>(count) * shape_.bytes());
    for (int64_t i = 0; i < count; ++i) {
      const uint8_t* source = values + static_cast<size_t>(i) * each;
      uint8_t* target = memory_.get() + static_cast<size_t>(i) * shape_.bytes();
      const std::vector<uint8_t> halves =
          shape_.format == Format::kInt4 ? nibbles(source, each) : std::vector<uint8_t>();
      const float* factors = scales ? scales->data() + i * scale_count : nullptr;
      pack(shape_, halves.empty() ? source : halves.data(), factors, target);
      matrices_.push_back(packed_at(shape_, target));
    }
  }

  PackedMatrix shape_;
  std::shared_ptr<uint8_t> memory_;
  std::vector<PackedMatrix> matrices_;
};

using PackedPointer = std::shared_ptr<Packed>;
using Weight = std::variant<PackedPointer, py::array>;
using Scales = std::optional<Floats>;

PackedPointer packed(const Weight& weight, const Scales& scales, int64_t block_size, int bits) {
  if (const auto* given = std::get_if<PackedPointer>(&weight)) return *given;
  return std::make_shared<Packed>(std::get<py::array>(weight), scales, block_size, bits);
}

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const Kernels* kernels : usable_kernels()) names.emplace_back(kernels->isa);
  return names;
}

Floats qlinear(const Floats& x, const Weight& weight, const Scales& scales, int64_t block_size, int bits, bool exact,
               const std::string& isa, int threads) {
  const PackedPointer matrix = packed(weight, scales, block_size, bits);
  std::vector<py::ssize_t> shape = State::shape_of(x);
  if (shape.empty() || shape.back() != matrix->first().in) expect(x, "x", {-1, -1, matrix->first().in});
  QLinearArgs args{};
  shape.back() = 1;
  args.tokens = 1;
  for (const py::ssize_t dim : shape) args.tokens *= dim;
  shape.back() = matrix->first().out;
  Floats y(shape);
  args.x = x.data();
  args.weight = matrix->data();
  args.exact = exact;
  args.y = y.mutable_data();
  const Kernels& kernels = choose_kernels(isa);
  Threads pool(threads);
  const py::gil_scoped_release release;
  kernels.qlinear(args, pool.parallel());
  return y;
}

Activation activation_of(const std::string& name) {
  if (name == "relu2") return Activation::kRelu2;
  if (name == "gelu") return Activation::kGelu;
  if (name == "silu_gated") return Activation::kSiluGated;
  throw std::invalid_argument("activation: expected relu2, gelu or silu_gated, found " + name + ".");
}

Scoring scoring_of(const std::string& name) {
  if (name == "sigmoid") return Scoring::kSigmoid;
  if (name == "softmax") return Scoring::kSoftmax;
  throw std::invalid_argument("scoring: expected sigmoid or softmax, found " + name + ".");
}

void check(const MoeArgs& a, const Packed& up, const Packed& down) {
  const int64_t gates = a.activation == Activation::kSiluGated ? 2 : 1;
  const bool fits = up.first().out == gates * a.intermediate && down.first().out == a.width &&
                    down.count() == a.experts && a.n_group > 0 && a.experts % a.n_group == 0 && a.topk_group > 0 &&
                    a.topk_group <= a.n_group && a.top_k > 0 && a.top_k <= a.experts / a.n_group * a.topk_group;
  if (!fits) throw std::invalid_argument("moe: the weights and attributes contradict each other.");
}

Floats moe(const Floats& x, const Floats& router_logits, const Floats& correction_bias, const Weight& up_weight,
           const Weight& down_weight, int64_t top_k, int64_t n_group, int64_t topk_group, bool norm_topk_prob,
           float routed_scaling_factor, const Scales& up_scales, const Scales& down_scales, int64_t block_size,
           const std::string& activation, const std::string& scoring, int bits, bool exact, const std::string& isa,
           int threads) {
  const PackedPointer up = packed(up_weight, up_scales, block_size, bits);
  const PackedPointer down = packed(down_weight, down_scales, block_size, bits);
  MoeArgs args{};
  args.width = up->first().in;
  args.experts = up->count();
  args.intermediate = down->first().in;
  args.top_k = top_k;
  args.n_group = n_group;
  args.topk_group = topk_group;
  args.norm_topk_prob = norm_topk_prob;
  args.routed_scaling_factor = routed_scaling_factor;
  args.activation = activation_of(activation);
  args.scoring = scoring_of(scoring);
  args.exact = exact;
  check(args, *up, *down);
  expect(x, "x", {-1, -1, args.width});
  expect(router_logits, "router_logits", {x.shape(0), x.shape(1), args.experts});
  expect(correction_bias, "correction_bias", {args.experts});
  Floats y(State::shape_of(x));
  args.tokens = x.shape(0) * x.shape(1);
  args.x = x.data();
  args.router_logits = router_logits.data();
  args.correction_bias = correction_bias.data();
  args.up = up->data();
  args.down = down->data();
  args.y = y.mutable_data();
  const Kernels& kernels = choose_kernels(isa);
  Threads pool(threads);
  const py::gil_scoped_release release;
  kernels.moe(args, pool.parallel());
  return y;
}

py::tuple mamba2_mixer(const Floats& proj, const Floats& conv_weight, const Floats& conv_bias, const Floats& dt_bias,
                       const Floats& a_log, const Floats& d, const Floats& norm_weight, const py::array& past_conv,
                       const py::array& past_ssm, int64_t groups, int64_t conv_dim, float eps, float dt_min,
                       float dt_max, bool inplace, const std::string& isa, int threads) {
  State conv(past_conv, "past_conv", inplace), ssm(past_ssm, "past_ssm", inplace);
  if (conv.type != Type::kFloat32) throw std::invalid_argument("past_conv: expected float32.");
  if (ssm.type == Type::kInt8) throw std::invalid_argument("past_ssm: expected a float type.");
  expect(proj, "proj", {-1, -1, -1});
  expect(past_ssm, "past_ssm", {proj.shape(0), -1, -1, -1});
  expect(conv_weight, "conv_weight", {conv_dim, -1});
  Mamba2MixerArgs a{proj.shape(0),
                    proj.shape(1),
                    past_ssm.shape(1),
                    past_ssm.shape(2),
                    groups,
                    past_ssm.shape(3),
                    conv_weight.shape(1),
                    eps,
                    dt_min,
                    dt_max,
                    proj.data(),
                    conv_weight.data(),
                    conv_bias.data(),
                    dt_bias.data(),
                    a_log.data(),
                    d.data(),
                    norm_weight.data(),
                    nullptr,
                    nullptr,
                    ssm.type,
                    nullptr,
                    nullptr,
                    nullptr};
  const int64_t inner = a.heads * a.head_dim;
  if (groups < 1 || a.heads % groups != 0 || a.kernel < 2 || conv_dim != inner + 2 * groups * a.state) {
    throw std::invalid_argument("mamba2_mixer: groups, conv_dim and the shapes contradict each other.");
  }
  expect(proj, "proj", {a.batch, a.length, inner + conv_dim + a.heads});
  expect(conv_bias, "conv_bias", {conv_dim});
  expect(dt_bias, "dt_bias", {a.heads});
  expect(a_log, "a_log", {a.heads});
  expect(d, "d", {a.heads});
  expect(norm_weight, "norm_weight", {inner});
  expect(past_conv, "past_conv", {a.batch, conv_dim, a.kernel - 1});
  Floats y({a.batch, a.length, inner});
  a.past_conv = static_cast<const float*>(conv.from());
  a.past_ssm = ssm.from();
  a.y = y.mutable_data();
  a.present_conv = static_cast<float*>(conv.to());
  a.present_ssm = ssm.to();
  const Kernels& kernels = choose_kernels(isa);
  Threads pool(threads);
  {
    const py::gil_scoped_release release;
    kernels.mamba2_mixer(a, pool.parallel());
  }
  return py::make_tuple(y, conv.present, ssm.present);
}

// The sizes of cached_attention, from arrays that agree with each other.
CachedAttentionArgs attention_sizes(const Floats& query, const Floats& key, const Floats& value,
                                    const Array<int64_t>& past_length, const std::vector<State>& states) {
  expect(query, "query", {-1, -1, -1});
  expect(states[0].past, "past_key", {query.shape(0), -1, -1, -1});
  CachedAttentionArgs a{};
  a.batch = query.shape(0);
  a.length = query.shape(1);
  a.kv_heads = states[0].past.shape(1);
  a.capacity = states[0].past.shape(2);
  a.head_dim = states[0].past.shape(3);
  a.cache_type = states[0].type;
  const int64_t key_width = a.kv_heads * a.head_dim;
  const bool int8 = a.cache_type == Type::kInt8;
  if (key_width == 0 || query.shape(2) % key_width != 0 || a.cache_type == Type::kBfloat16 ||
      a.cache_type != states[1].type || int8 != (states.size() == 4)) {
    throw std::invalid_argument("cached_attention: the caches, scales and shapes contradict each other.");
  }
  a.heads = query.shape(2) / a.head_dim;
  expect(key, "key", {a.batch, a.length, key_width});
  expect(value, "value", {a.batch, a.length, key_width});
  expect(past_length, "past_length", {a.batch});
  expect(states[1].past, "past_value", {a.batch, a.kv_heads, a.capacity, a.head_dim});
  for (size_t i = 2; i < states.size(); ++i) {
    expect(states[i].past, "scales of the cache", {a.batch, a.kv_heads, a.capacity});
    if (states[i].type != Type::kFloat32) throw std::invalid_argument("scales of the cache: expected float32.");
  }
  a.query = query.data();
  a.key = key.data();
  a.value = value.data();
  a.past_length = past_length.data();
  return a;
}

py::tuple cached_attention(const Floats& query, const Floats& key, const Floats& value,
                           const Array<int64_t>& past_length, const py::array& past_key, const py::array& past_value,
                           float scale, int64_t window, const std::optional<py::array>& past_key_scale,
                           const std::optional<py::array>& past_value_scale, bool inplace, const std::string& isa,
                           int threads) {
  if (window < 0) throw std::invalid_argument("window: expected at least 0, found " + std::to_string(window) + ".");
  std::vector<State> states;
  states.emplace_back(past_key, "past_key", inplace);
  states.emplace_back(past_value, "past_value", inplace);
  if (past_key_scale) states.emplace_back(*past_key_scale, "past_key_scale", inplace);
  if (past_value_scale) states.emplace_back(*past_value_scale, "past_value_scale", inplace);
  CachedAttentionArgs a = attention_sizes(query, key, value, past_length, states);
  Floats y(State::shape_of(query));
  a.window = window;
  a.scale = scale;
  a.y = y.mutable_data();
  a.past_key = states[0].from();
  a.past_value = states[1].from();
  a.present_key = states[0].to();
  a.present_value = states[1].to();
  if (states.size() == 4) {
    a.past_key_scale = static_cast<const float*>(states[2].from());
    a.past_value_scale = static_cast<const float*>(states[3].from());
    a.present_key_scale = static_cast<float*>(states[2].to());
    a.present_value_scale = static_cast<float*>(states[3].to());
  }
  const Kernels& kernels = choose_kernels(isa);
  Threads pool(threads);
  {
    const py::gil_scoped_release release;
    kernels.cached_attention(a, pool.parallel());
  }
  py::list outputs;
  outputs.append(y);
  for (const State& state : states) outputs.append(state.present);
  return py::tuple(outputs);
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  using py::arg;
  m.doc() = "The CPU kernels on NumPy arrays. Shapes and meaning: edge_plugins/<operator>/op.py.";
  const auto isa = arg("isa") = "auto";
  const auto threads = arg("threads") = 1;
  const auto exact = arg("exact") = false;
  const auto inplace = arg("inplace") = false;
  const auto none = py::none();
  py::class_<Packed, PackedPointer>(m, "PackedMatrix")
      .def(py::init<const py::array&, const Scales&, int64_t, int>(), arg("weight"), arg("scales") = none,
           py::kw_only(), arg("block_size") = 0, arg("bits") = 8)
      .def_property_readonly("bytes", &Packed::bytes)
      .def_property_readonly("shape",
                             [](const Packed& p) { return py::make_tuple(p.count(), p.first().in, p.first().out); });
  m.def("isas", &isas);
  m.def("qlinear", &qlinear, py::kw_only(), arg("x"), arg("weight"), arg("scales") = none, arg("block_size") = 0,
        arg("bits") = 8, exact, isa, threads);
  m.def("moe", &moe, py::kw_only(), arg("x"), arg("router_logits"), arg("correction_bias"), arg("up_weight"),
        arg("down_weight"), arg("top_k"), arg("n_group"), arg("topk_group"), arg("norm_topk_prob"),
        arg("routed_scaling_factor"), arg("up_scales") = none, arg("down_scales") = none, arg("block_size") = 0,
        arg("activation") = "relu2", arg("scoring") = "sigmoid", arg("bits") = 8, exact, isa, threads);
  m.def("mamba2_mixer", &mamba2_mixer, py::kw_only(), arg("proj"), arg("conv_weight"), arg("conv_bias"), arg("dt_bias"),
        arg("a_log"), arg("d"), arg("norm_weight"), arg("past_conv"), arg("past_ssm"), arg("groups"), arg("conv_dim"),
        arg("eps"), arg("dt_min"), arg("dt_max"), inplace, isa, threads);
  m.def("cached_attention", &cached_attention, py::kw_only(), arg("query"), arg("key"), arg("value"),
        arg("past_length"), arg("past_key"), arg("past_value"), arg("scale"), arg("window"),
        arg("past_key_scale") = none, arg("past_value_scale") = none, inplace, isa, threads);
}

}  // namespace edge
