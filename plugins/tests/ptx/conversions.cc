// From one type to another: what each lane does for itself in registers.
#include <cmath>

#include "registers.h"

namespace edge::ptx {
namespace {

template <class T>
struct Widen {
  static float of(T x) { return wide(x); }
};
template <class T>
struct Narrow {
  static T of(float x) { return narrow<T>(x); }
};
struct NarrowTwo {
  static BrainPair of(float high, float low) { return {narrow<Brain>(low), narrow<Brain>(high)}; }
};
struct ToWhole {
  static float of(float x) { return std::nearbyint(x); }
};
struct Saturate {
  static float of(float x) { return std::isnan(x) ? 0.0f : std::fmin(std::fmax(x, 0.0f), 1.0f); }
};
template <class To, class From>
struct Convert {
  static To of(From x) { return static_cast<To>(x); }
};
struct Truncate {
  static int32_t of(float x) {
    if (std::isnan(x)) return 0;
    if (x >= 2147483648.0f) return INT32_MAX;
    return x <= -2147483648.0f ? INT32_MIN : static_cast<int32_t>(x);
  }
};

template <class From>
void add_integers(Table& table, const std::string& from) {
  const auto add = [&](const char* to, Operation operation) {
    table["cvt." + std::string(to) + "." + from] = operation;
  };
  add("u8", plain<Convert<uint8_t, From>, From>());
  add("s8", plain<Convert<int8_t, From>, From>());
  add("u16", plain<Convert<uint16_t, From>, From>());
  add("s16", plain<Convert<int16_t, From>, From>());
  add("u32", plain<Convert<uint32_t, From>, From>());
  add("s32", plain<Convert<int32_t, From>, From>());
  add("u64", plain<Convert<uint64_t, From>, From>());
  add("s64", plain<Convert<int64_t, From>, From>());
  add("rn.f32", plain<Convert<float, From>, From>());
}

}  // namespace

void add_conversions(Table& table) {
  for_each_type([&](const char* name, auto type) {
    using T = decltype(type);
    if constexpr (std::is_integral_v<T>) add_integers<T>(table, name);
  });
  table["cvt.rni.f32.f32"] = plain<ToWhole, float>();
  table["cvt.sat.f32.f32"] = plain<Saturate, float>();
  table["cvt.rzi.s32.f32"] = plain<Truncate, float>();
  table["cvt.f32.f16"] = plain<Widen<Half>, Half>();
  table["cvt.rn.f16.f32"] = plain<Narrow<Half>, float>();
  table["cvt.rn.bf16.f32"] = plain<Narrow<Brain>, float>();
  table["cvt.rn.bf16x2.f32"] = plain<NarrowTwo, float, float>();
}

}  // namespace edge::ptx
