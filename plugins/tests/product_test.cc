// Packing, QLinear and MoE.
#include "check.h"

namespace edge::test {
namespace {

using reference::Doubles;

// A random matrix as a model stores it, packed, and what it means.
struct Matrix {
  Matrix(Format format, int64_t in, int64_t out, int64_t block, bool half_scales) {
    shape.format = format;
    shape.in = in;
    shape.out = out;
    shape.block = format == Format::kInt8 || format == Format::kInt4 ? block : 0;
    const int64_t size = in * out;
    if (shape.block != 0) {
      scales = Floats::uniform(size / shape.block, 0.01f, 0.1f);
      for (int64_t i = 0; half_scales && i < scales.size(); ++i) {
        scales[i] = static_cast<float>(reference::from_half(reference::to_half(scales[i])));
      }
      shape.half_scales = fits_float16(scales.data(), scales.size());
      check(!half_scales || shape.half_scales, "float16 scales are found to be such");
    }
    fill(size);
    check(unpackable(shape) == nullptr, "a packable shape");
    storage.resize(shape.bytes() + 64);
    uint8_t* base = storage.data() + (64 - reinterpret_cast<uintptr_t>(storage.data()) % 64) % 64;
    pack(shape, bytes.data(), scales.data(), base);
    packed = packed_at(shape, base);
    check(reference::dense(packed) == meaning, "pack" + text({static_cast<int64_t>(format), in, out, shape.block}));
  }

  void fill(int64_t size) {
    const int limit = shape.format == Format::kInt4 ? 8 : 128;
    std::uniform_int_distribution<int> integers(-limit, limit - 1);
    Floats values = Floats::normal(size, 0.5f);
    bytes.assign(static_cast<size_t>(shape.format == Format::kInt4 ? (size + 1) / 2 : shape.block != 0 ? size : 0), 0);
    if (shape.block == 0) bytes = as_type(values, shape.format == Format::kFloat32 ? Type::kFloat32 : Type::kBfloat16);
    for (int64_t i = 0; i < size; ++i) {
      const size_t at = static_cast<size_t>(i);
      if (shape.block == 0) {
        const Type type = shape.format == Format::kFloat32 ? Type::kFloat32 : Type::kBfloat16;
        meaning.push_back(reference::load(bytes.data(), type, i));
        continue;
      }
      const int value = integers(random_bits());
      meaning.push_back(value * static_cast<double>(scales[i / shape.out / shape.block * shape.out + i % shape.out]));
      if (shape.format == Format::kInt8) {
        bytes[at] = static_cast<uint8_t>(value);
      } else {
        bytes[at / 2] = static_cast<uint8_t>(bytes[at / 2] | (value & 15) << (at % 2 * 4));
      }
    }
  }

  PackedMatrix shape, packed;
  std::vector<uint8_t> bytes, storage;
  Floats scales{0};
  Doubles meaning;
};

constexpr Format kFormats[] = {Format::kFloat32, Format::kBfloat16, Format::kInt8, Format::kInt4};

// What rounding x to int8 by blocks or to bfloat16 may cost.
constexpr double kExact = 2e-5, kRounded = 1.5e-2;

void test_qlinear(const Kernels& kernels, Matrix& matrix, int64_t tokens, bool exact) {
  const int64_t in = matrix.shape.in, out = matrix.shape.out;
  Floats x = Floats::normal(tokens * in), y(tokens * out, NAN);
  QLinearArgs args{tokens, x.data(), &matrix.packed, exact, y.data()};
  const std::string name =
      std::string(kernels.isa) + " qlinear" +
      text({static_cast<int64_t>(matrix.shape.format), in, out, matrix.shape.block, tokens, exact});
  kernels.qlinear(args, Parallel());
  // As large as y typically is: with few outputs the largest may happen to be small.
  double squares = 0;
  for (const double weight : matrix.meaning) squares += weight * weight;
  const double typical = std::sqrt(squares / static_cast<double>(out));
  check_close(y, reference::qlinear(args), (exact ? kExact : kRounded) * std::max(1.0, typical), name);
  const Floats alone = y;
  for (const Parallel& parallel : ways_of_running()) {
    kernels.qlinear(args, parallel);
    check(y == alone, name + ": the same however tasks run");
  }
  if (tokens < 2) return;
  x[in / 2] = NAN;  // of token 0
  Floats other(tokens * out, 0);
  args.y = other.data();
  kernels.qlinear(args, Parallel());
  bool stays = true, arrives = true;
  for (int64_t i = 0; i < tokens * out; ++i)
    (i < out ? arrives : stays) &= i < out ? std::isnan(other[i]) : other[i] == y[i];
  check(stays, name + ": NaN stays in its row");
  check(arrives, name + ": NaN is not hidden");
}

void test_moe(const Kernels& kernels, Format format, Activation activation, int64_t tokens, int64_t n_group,
              bool exact) {
  const int64_t width = 64, intermediate = 96, experts = 8;
  const int64_t risen = activation == Activation::kSiluGated ? 2 * intermediate : intermediate;
  std::vector<Matrix> up, down;
  std::vector<PackedMatrix> ups, downs;
  for (int64_t e = 0; e < experts; ++e) {
    up.emplace_back(format, width, risen, 32, e % 2 == 0 && format == Format::kInt4);
    down.emplace_back(format, intermediate, width, 32, true);
  }
  for (int64_t e = 0; e < experts; ++e) {
    ups.push_back(up[static_cast<size_t>(e)].packed);
    downs.push_back(down[static_cast<size_t>(e)].packed);
  }
  Floats x = Floats::normal(tokens * width), logits = Floats::normal(tokens * experts), y(tokens * width, NAN);
  Floats bias = Floats::uniform(experts, -0.3f, 0.3f);
  bias[experts - 1] = -10;  // an expert that no token chooses
  const Scoring scoring = activation == Activation::kSiluGated ? Scoring::kSoftmax : Scoring::kSigmoid;
  const MoeArgs args{tokens,       width,      experts,      intermediate, 2,     n_group,  (n_group + 1) / 2,
                     n_group == 1, scoring,    1.5f,         activation,   exact, x.data(), logits.data(),
                     bias.data(),  ups.data(), downs.data(), y.data()};
  const std::string name =
      std::string(kernels.isa) + " moe" +
      text({static_cast<int64_t>(format), static_cast<int64_t>(activation), tokens, n_group, exact});
  kernels.moe(args, Parallel());
  // relu2 squares what the first product's rounding cost.
  check_close(y, reference::moe(args), exact ? 2 * kExact : 4 * kRounded, name);
  const Floats alone = y;
  for (const Parallel& parallel : ways_of_running()) {
    kernels.moe(args, parallel);
    check(y == alone, name + ": the same however tasks run");
  }
}

}  // namespace

void test_products(const Kernels& kernels) {
  for (const Format format : kFormats) {
    for (const auto& [in, out, block] : {std::tuple<int64_t, int64_t, int64_t>{64, 48, 32},
                                         {96, 1, 32},
                                         {128, 65, 64},
                                         {160, 130, 32},
                                         {256, 64, 128},
                                         {512, 200, 64},
                                         {288, 40, 96},
                                         {1024, 33, 512}}) {
      Matrix matrix(format, in, out, block, out % 2 == 0);
      for (const int64_t tokens : {0, 1, 2, 3, 5, 16, 17, 33}) {
        test_qlinear(kernels, matrix, tokens, true);
        test_qlinear(kernels, matrix, tokens, false);
      }
    }
    Matrix large(format, 128, 192, 32, true);
    for (const int64_t tokens : {64, 129}) test_qlinear(kernels, large, tokens, false);
    if (format == Format::kFloat32 || format == Format::kBfloat16) {
      Matrix even(format, 34, 70, 0, false);  // floats need no multiple of 32
      for (const int64_t tokens : {1, 7}) test_qlinear(kernels, even, tokens, true);
    }
    for (const Activation activation : {Activation::kRelu2, Activation::kGelu, Activation::kSiluGated}) {
      for (const int64_t tokens : {0, 1, 5, 40}) {
        test_moe(kernels, format, activation, tokens, tokens == 5 ? 4 : 1, tokens % 2 == 1);
      }
    }
  }
}

}  // namespace edge::test
