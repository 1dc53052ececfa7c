// The operators that carry states: Mamba2Mixer and CachedAttention.
#include <stdexcept>
#include <tuple>

#include "check.h"
#include "mamba.h"

namespace edge::test {
namespace {

using reference::Doubles;

void test_mamba(const Kernels& kernels, Mamba&& m) {
  const std::string name = kernels.isa + m.name;
  const reference::MambaResult expected = reference::mamba2_mixer(m.args);
  const Type type = m.args.ssm_type;
  const double rounding = type == Type::kFloat32 ? 2e-5 : type == Type::kFloat16 ? 1e-3 : 8e-3;
  kernels.mamba2_mixer(m.args, Parallel());
  check_close(m.y, expected.y, 5e-5, name + " y");
  check_close(m.present_conv, expected.conv, 0, name + " conv");
  check_close(loaded(m.present_ssm, type), expected.ssm, rounding, name + " ssm");
  const Floats y = m.y, conv = m.present_conv;
  const std::vector<uint8_t> ssm = m.present_ssm;
  for (const Parallel& parallel : ways_of_running()) {
    kernels.mamba2_mixer(m.args, parallel);
    check(m.y == y && m.present_conv == conv && m.present_ssm == ssm, name + ": the same however tasks run");
  }
  m.args.present_conv = m.past_conv.data();
  m.args.present_ssm = m.past_ssm.data();
  kernels.mamba2_mixer(m.args, Parallel());
  check(m.y == y && m.past_conv == conv && m.past_ssm == ssm, name + ": the same in place");
}

// A row of a batch must not see what is wrong with another.
void test_mamba_rows(const Kernels& kernels, int64_t length) {
  Mamba m(3, length, 4, 16, 2, 16, 4, Type::kFloat32, false);
  kernels.mamba2_mixer(m.args, Parallel());
  Floats y = m.y;
  m.proj[length * m.width + 3] = NAN;  // the middle row
  kernels.mamba2_mixer(m.args, Parallel());
  bool same = true, seen = false;
  for (int64_t i = 0; i < m.y.size(); ++i) {
    const bool middle = i / (length * m.inner) == 1;
    same = same && (middle || m.y[i] == y[i]);
    seen = seen || (middle && std::isnan(m.y[i]));
  }
  check(same && seen, std::string(kernels.isa) + " mamba2_mixer: NaN stays in its row" + text({length}));
}

// Random inputs of one call; its caches hold NaN beyond each row's last position.
struct Attention {
  Attention(std::vector<int64_t> past, int64_t length, int64_t kv_heads, int64_t group_heads, int64_t head_dim,
            int64_t window, Type type)
      : past_length(std::move(past)) {
    const int64_t batch = static_cast<int64_t>(past_length.size()), heads = kv_heads * group_heads;
    const int64_t capacity = *std::max_element(past_length.begin(), past_length.end()) + length + 3;
    query = Floats::normal(batch * length * heads * head_dim, 2);
    key = Floats::normal(batch * length * kv_heads * head_dim);
    value = Floats::normal(batch * length * kv_heads * head_dim);
    y = Floats(query.size(), NAN);
    for (size_t part = 0; part < 2; ++part) {
      Floats floats = Floats::normal(batch * kv_heads * capacity * head_dim);
      scales[part] = Floats::uniform(batch * kv_heads * capacity, 0.01f, 0.03f);
      for (int64_t row = 0; row < scales[part].size(); ++row) {
        const bool used = row % capacity < past_length[static_cast<size_t>(row / (capacity * kv_heads))];
        for (int64_t d = 0; !used && d < head_dim; ++d) floats[row * head_dim + d] = NAN;
        if (!used) scales[part][row] = NAN;
      }
      if (type != Type::kInt8) past_cache[part] = as_type(floats, type);
      for (int64_t i = 0; type == Type::kInt8 && i < floats.size(); ++i) {
        past_cache[part].push_back(static_cast<uint8_t>(std::uniform_int_distribution<int>(-127, 127)(random_bits())));
      }
      cache[part].assign(past_cache[part].size(), 0x55);
      present_scales[part] = Floats(scales[part].size());
    }
    args = {batch,
            length,
            heads,
            kv_heads,
            head_dim,
            capacity,
            window,
            1 / std::sqrt(static_cast<float>(head_dim)),
            type,
            query.data(),
            key.data(),
            value.data(),
            past_length.data(),
            past_cache[0].data(),
            past_cache[1].data(),
            scales[0].data(),
            scales[1].data(),
            y.data(),
            cache[0].data(),
            cache[1].data(),
            present_scales[0].data(),
            present_scales[1].data()};
    name = " cached_attention" +
           text({batch, past_length[0], length, kv_heads, group_heads, head_dim, window, static_cast<int64_t>(type)});
  }

  std::vector<int64_t> past_length;
  Floats query{0}, key{0}, value{0}, y{0}, scales[2]{Floats(0), Floats(0)}, present_scales[2]{Floats(0), Floats(0)};
  std::vector<uint8_t> past_cache[2], cache[2];
  CachedAttentionArgs args;
  std::string name;
};

// What the cache must hold: the old rows as they were, the new ones rounded as op.py says.
void check_cache(const Attention& t, size_t part, const std::string& name) {
  const CachedAttentionArgs& a = t.args;
  const float* source = part == 0 ? a.key : a.value;
  const size_t row_bytes = static_cast<size_t>(a.head_dim) * size_of(a.cache_type);
  bool kept = true, stored = true;
  for (int64_t row = 0; row < a.batch * a.kv_heads * a.capacity; ++row) {
    const int64_t b = row / (a.capacity * a.kv_heads), head = row / a.capacity % a.kv_heads;
    const int64_t step = row % a.capacity - t.past_length[static_cast<size_t>(b)];
    const uint8_t* now = t.cache[part].data() + static_cast<size_t>(row) * row_bytes;
    if (step < 0 || step >= a.length) {
      kept = kept && std::memcmp(now, t.past_cache[part].data() + static_cast<size_t>(row) * row_bytes, row_bytes) == 0;
      continue;
    }
    const float* from = source + ((b * a.length + step) * a.kv_heads + head) * a.head_dim;
    float largest = 0;
    for (int64_t d = 0; d < a.head_dim; ++d) largest = std::max(largest, std::fabs(from[d]));
    const float scale = largest / 127 == 0 ? 1 : largest / 127;
    for (int64_t d = 0; d < a.head_dim; ++d) {
      const double want = a.cache_type == Type::kFloat32   ? from[d]
                          : a.cache_type == Type::kFloat16 ? reference::from_half(reference::to_half(from[d]))
                                                           : std::nearbyint(from[d] / scale);
      stored = stored && reference::load(now, a.cache_type, d) == want;
    }
  }
  check(kept, name + ": other rows stay as they are");
  check(stored, name + ": new rows are stored as op.py says");
}

void test_attention(const Kernels& kernels, Attention&& t) {
  const std::string name = kernels.isa + t.name;
  kernels.cached_attention(t.args, Parallel());
  for (const size_t part : {0, 1}) check_cache(t, part, name);
  check_close(t.y, reference::cached_attention(t.args), 2e-5, name);
  const Floats y = t.y;
  const std::vector<uint8_t> keys = t.cache[0], values = t.cache[1];
  for (const Parallel& parallel : ways_of_running()) {
    kernels.cached_attention(t.args, parallel);
    check(t.y == y && t.cache[0] == keys && t.cache[1] == values, name + ": the same however tasks run");
  }
  t.args.present_key = t.past_cache[0].data();
  t.args.present_value = t.past_cache[1].data();
  t.args.present_key_scale = t.scales[0].data();
  t.args.present_value_scale = t.scales[1].data();
  kernels.cached_attention(t.args, Parallel());
  check(t.y == y && t.past_cache[0] == keys && t.past_cache[1] == values, name + ": the same in place");
}

void test_full_cache(const Kernels& kernels) {
  Attention t({5, 4}, 2, 2, 2, 16, 0, Type::kFloat32);
  for (const int64_t wrong : {t.args.capacity - 1, int64_t{-1}}) {
    t.past_length[1] = wrong;
    try {
      kernels.cached_attention(t.args, Parallel());
      check(false, std::string(kernels.isa) + " cached_attention: a full cache is refused");
    } catch (const std::invalid_argument&) {
      check(true, "");
    }
  }
}

}  // namespace

void test_mamba2_mixer(const Kernels& kernels) {
  for (const int64_t length : {0, 1, 2, 3, 15, 16, 17, 31, 63, 64, 65, 127, 128, 129, 200, 257}) {
    const int64_t batch = length % 2 == 0 ? 1 : 2;
    test_mamba(kernels, Mamba(batch, length, 4, 16, 2, 16, 4, Type::kFloat32, false));
    test_mamba(kernels, Mamba(1, length, 6, 8, 1, 24, 3, Type::kFloat32, length % 3 == 0));
  }
  for (const int64_t length : {1, 2, 40}) {
    for (const Type type : {Type::kFloat32, Type::kFloat16, Type::kBfloat16}) {
      test_mamba(kernels, Mamba(3, length, 2, 64, 1, 128, 4, type, false));
      test_mamba(kernels, Mamba(1, length, 4, 80, 2, 64, 4, type, false));
      test_mamba(kernels, Mamba(1, length, 8, 5, 8, 3, 2, type, true));
    }
  }
  for (const int64_t length : {1, 20}) test_mamba_rows(kernels, length);
}

void test_cached_attention(const Kernels& kernels) {
  for (const Type type : {Type::kFloat32, Type::kFloat16, Type::kInt8}) {
    for (const int64_t length : {0, 1, 2, 17, 70}) {
      test_attention(kernels, Attention({0, 5}, length, 2, 4, 16, 0, type));
      test_attention(kernels, Attention({33}, length, 1, 5, 80, 7, type));
    }
    test_attention(kernels, Attention({300, 0, 129}, 1, 2, 1, 64, 0, type));
    test_attention(kernels, Attention({200}, 3, 1, 4, 128, 64, type));
    test_attention(kernels, Attention({9}, 33, 3, 2, 7, 0, type));
  }
  test_full_cache(kernels);
}

}  // namespace edge::test
