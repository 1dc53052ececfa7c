// Arithmetic and comparisons: what each lane does for itself in registers.
#include <cfenv>
#include <cmath>
#include <limits>

#include "registers.h"

namespace edge::ptx {
namespace {

// ---- Integers ----

template <class T>
using Unsigned = std::make_unsigned_t<T>;

template <class T>
T wrap(Unsigned<T> bits) {
  return static_cast<T>(bits);
}

#define EDGE_BINARY(Name, expression)            \
  template <class T>                             \
  struct Name {                                  \
    static T of(T a, T b) { return expression; } \
  }

EDGE_BINARY(Add, wrap<T>(Unsigned<T>(a) + Unsigned<T>(b)));
EDGE_BINARY(Subtract, wrap<T>(Unsigned<T>(a) - Unsigned<T>(b)));
EDGE_BINARY(MultiplyLow, wrap<T>(Unsigned<T>(a) * Unsigned<T>(b)));
EDGE_BINARY(Divide, b == 0 ? T(-1) : T(a / b));
EDGE_BINARY(Remainder, b == 0 ? a : T(a % b));
EDGE_BINARY(Least, a < b ? a : b);
EDGE_BINARY(Greatest, a > b ? a : b);
EDGE_BINARY(And, T(a& b));
EDGE_BINARY(Or, T(a | b));
EDGE_BINARY(Xor, T(a ^ b));

template <class T>
struct ShiftLeft {
  static T of(T a, uint32_t by) { return by >= sizeof(T) * 8 ? T(0) : T(a << by); }
};
template <class T>
struct ShiftRight {
  static T of(T a, uint32_t by) {
    if (by >= sizeof(T) * 8) return a < 0 ? T(-1) : T(0);
    return T(a >> by);
  }
};
template <class T>
struct Negate {
  static T of(T a) { return wrap<T>(Unsigned<T>(0) - Unsigned<T>(a)); }
};
template <class T>
struct Absolute {
  static T of(T a) { return a < 0 ? Negate<T>::of(a) : a; }
};
template <class T>
struct Not {
  static T of(T a) { return T(~a); }
};
template <class T, class Wide>
struct MultiplyWide {
  static Wide of(T a, T b) { return Wide(a) * Wide(b); }
};
template <class T, class Wide>
struct MultiplyHigh {
  static T of(T a, T b) { return T((Wide(a) * Wide(b)) >> (sizeof(T) * 8)); }
};
template <class T>
struct MultiplyAdd {
  static T of(T a, T b, T c) { return wrap<T>(Unsigned<T>(a) * Unsigned<T>(b) + Unsigned<T>(c)); }
};
template <class T, class Wide>
struct MultiplyAddWide {
  static Wide of(T a, T b, Wide c) { return wrap<Wide>(Unsigned<Wide>(Wide(a) * Wide(b)) + Unsigned<Wide>(c)); }
};

struct CountOnes {
  static uint32_t of(uint32_t a) { return static_cast<uint32_t>(__builtin_popcount(a)); }
};
struct Reverse {
  static uint32_t of(uint32_t a) {
    uint32_t reversed = 0;
    for (unsigned i = 0; i < 32; ++i) reversed |= (a >> i & 1) << (31 - i);
    return reversed;
  }
};
struct ShiftToTop {  // how far the highest one must go to the left
  static uint32_t of(uint32_t a) { return a == 0 ? 0xffffffffu : static_cast<uint32_t>(__builtin_clz(a)); }
};
template <class T>
struct InsertBits {
  static T of(T a, T b, uint32_t at, uint32_t count) {
    at &= 0xff;
    count &= 0xff;
    if (count == 0 || at >= sizeof(T) * 8) return b;
    const T ones = count >= sizeof(T) * 8 ? ~T(0) : (T(1) << count) - 1;
    return T((b & ~T(ones << at)) | T((a & ones) << at));
  }
};
struct Permute {
  static uint32_t of(uint32_t a, uint32_t b, uint32_t selector) {
    const uint64_t bytes = uint64_t{b} << 32 | a;
    uint32_t chosen = 0;
    for (unsigned i = 0; i < 4; ++i) {
      const uint32_t control = selector >> (4 * i) & 0xf;
      const auto byte = static_cast<uint8_t>(bytes >> (8 * (control & 7)));
      const uint32_t taken = control & 8 ? (byte & 0x80 ? 0xffu : 0u) : byte;
      chosen |= taken << (8 * i);
    }
    return chosen;
  }
};

struct Lop3 {  // each bit of the result stands in the table at the place that the inputs' bits give
  static uint32_t of(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
    uint32_t found = 0;
    for (unsigned i = 0; i < 8; ++i) {
      if (table >> i & 1) found |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
    }
    return found;
  }
};
template <class T>
struct Select {
  static T of(T a, T b, Predicate p) { return p.bits & 1 ? a : b; }
};

struct PredicateAnd {
  static Predicate of(Predicate a, Predicate b) { return {a.bits & b.bits & 1}; }
};
struct PredicateOr {
  static Predicate of(Predicate a, Predicate b) { return {(a.bits | b.bits) & 1}; }
};
struct PredicateXor {
  static Predicate of(Predicate a, Predicate b) { return {(a.bits ^ b.bits) & 1}; }
};
struct PredicateNot {
  static Predicate of(Predicate a) { return {~a.bits & 1}; }
};

// ---- Floats ----

template <int kRounding, class F>
float rounded(F compute) {
  std::fesetround(kRounding);
  const volatile float result = compute();
  std::fesetround(FE_TONEAREST);
  return result;
}

float flush(float x) { return std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x; }

#define EDGE_FLOAT_UNARY(Name, expression)          \
  struct Name {                                     \
    static float of(float a) { return expression; } \
  }
#define EDGE_FLOAT_BINARY(Name, expression)                  \
  struct Name {                                              \
    static float of(float a, float b) { return expression; } \
  }

EDGE_FLOAT_BINARY(FloatAdd, a + b);
EDGE_FLOAT_BINARY(FloatSubtract, a - b);
EDGE_FLOAT_BINARY(FloatMultiply, a* b);
EDGE_FLOAT_BINARY(FloatDivide, a / b);
EDGE_FLOAT_BINARY(FloatLeast, std::fmin(a, b));
EDGE_FLOAT_BINARY(FloatGreatest, std::fmax(a, b));
EDGE_FLOAT_BINARY(CopySign, std::copysign(b, a));
EDGE_FLOAT_UNARY(FloatNegate, -a);
EDGE_FLOAT_UNARY(FloatAbsolute, std::fabs(a));
EDGE_FLOAT_UNARY(Reciprocal, 1.0f / a);
EDGE_FLOAT_UNARY(SquareRoot, std::sqrt(a));
EDGE_FLOAT_UNARY(Exp2, std::exp2(a));
EDGE_FLOAT_UNARY(Exp2Flushed, flush(std::exp2(flush(a))));
EDGE_FLOAT_UNARY(Log2, std::log2(a));

struct AddTowardZero {
  static float of(float a, float b) {
    const volatile float left = a, right = b;
    return rounded<FE_TOWARDZERO>([&] { return left + right; });
  }
};
struct Fma {
  static float of(float a, float b, float c) { return std::fma(a, b, c); }
};
struct FmaDown {
  static float of(float a, float b, float c) {
    const volatile float x = a, y = b, z = c;
    return rounded<FE_DOWNWARD>([&] { return std::fma(x, y, z); });
  }
};

struct SubtractHalves {
  static HalfPair of(HalfPair a, HalfPair b) {
    return {narrow<Half>(wide(a.low) - wide(b.low)), narrow<Half>(wide(a.high) - wide(b.high))};
  }
};
struct FmaBrains {
  static Brain one(Brain a, Brain b, Brain c) { return narrow<Brain>(std::fma(wide(a), wide(b), wide(c))); }
  static BrainPair of(BrainPair a, BrainPair b, BrainPair c) {
    return {one(a.low, b.low, c.low), one(a.high, b.high, c.high)};
  }
};

// ---- Comparisons ----

#define EDGE_COMPARE(Name, expression)                                 \
  template <class T>                                                   \
  struct Name {                                                        \
    static Predicate of(T a, T b) { return {(expression) ? 1u : 0u}; } \
  }
EDGE_COMPARE(Equal, a == b);
EDGE_COMPARE(Unequal, a<b || a> b);
EDGE_COMPARE(Less, a < b);
EDGE_COMPARE(AtMost, a <= b);
EDGE_COMPARE(Greater, a > b);
EDGE_COMPARE(AtLeast, a >= b);
EDGE_COMPARE(UnorderedOrUnequal, a != b);
EDGE_COMPARE(UnorderedOrLess, !(a >= b));
EDGE_COMPARE(UnorderedOrAtMost, !(a > b));
EDGE_COMPARE(UnorderedOrGreater, !(a <= b));
EDGE_COMPARE(UnorderedOrAtLeast, !(a < b));
EDGE_COMPARE(Unordered, a != a || b != b);
EDGE_COMPARE(Ordered, a == a && b == b);

// ---- The table ----

template <class T>
void add_integers(Table& table, const std::string& type) {
  const std::string dot = "." + type;
  table["add" + dot] = plain<Add<T>, T, T>();
  table["sub" + dot] = plain<Subtract<T>, T, T>();
  table["mul.lo" + dot] = plain<MultiplyLow<T>, T, T>();
  table["mad.lo" + dot] = plain<MultiplyAdd<T>, T, T, T>();
  table["div" + dot] = plain<Divide<T>, T, T>();
  table["rem" + dot] = plain<Remainder<T>, T, T>();
  table["min" + dot] = plain<Least<T>, T, T>();
  table["max" + dot] = plain<Greatest<T>, T, T>();
  table["neg" + dot] = plain<Negate<T>, T>();
  table["abs" + dot] = plain<Absolute<T>, T>();
  table["shr" + dot] = plain<ShiftRight<T>, T, uint32_t>();
}

template <class T>
void add_bits(Table& table, const std::string& type) {
  const std::string dot = "." + type;
  table["and" + dot] = plain<And<T>, T, T>();
  table["or" + dot] = plain<Or<T>, T, T>();
  table["xor" + dot] = plain<Xor<T>, T, T>();
  table["not" + dot] = plain<Not<T>, T>();
  table["shl" + dot] = plain<ShiftLeft<T>, T, uint32_t>();
  table["shr" + dot] = plain<ShiftRight<T>, T, uint32_t>();
}

template <class T>
void add_comparisons(Table& table, const std::string& type) {
  const auto add = [&](const char* name, Operation operation) {
    table["setp." + std::string(name) + "." + type] = operation;
  };
  add("eq", plain<Equal<T>, T, T>());
  add("ne", plain<Unequal<T>, T, T>());
  add("lt", plain<Less<T>, T, T>());
  add("le", plain<AtMost<T>, T, T>());
  add("gt", plain<Greater<T>, T, T>());
  add("ge", plain<AtLeast<T>, T, T>());
  if (!std::is_floating_point_v<T>) return;
  add("neu", plain<UnorderedOrUnequal<T>, T, T>());
  add("ltu", plain<UnorderedOrLess<T>, T, T>());
  add("leu", plain<UnorderedOrAtMost<T>, T, T>());
  add("gtu", plain<UnorderedOrGreater<T>, T, T>());
  add("geu", plain<UnorderedOrAtLeast<T>, T, T>());
  add("nan", plain<Unordered<T>, T, T>());
  add("num", plain<Ordered<T>, T, T>());
}

void add_all_types(Table& table) {
  add_integers<int16_t>(table, "s16");
  add_integers<int32_t>(table, "s32");
  add_integers<uint32_t>(table, "u32");
  add_integers<int64_t>(table, "s64");
  add_integers<uint64_t>(table, "u64");
  add_bits<uint16_t>(table, "b16");
  add_bits<uint32_t>(table, "b32");
  add_bits<uint64_t>(table, "b64");
  for_each_type([&](const char* name, auto type) {
    using T = decltype(type);
    table["selp." + std::string(name)] = plain<Select<T>, T, T, Predicate>();
    if constexpr (sizeof(T) > 1) add_comparisons<T>(table, name);
  });
}

void add_floats(Table& table) {
  for (const char* rounding : {"", ".rn"}) {
    const std::string type = std::string(rounding) + ".f32";
    table["add" + type] = plain<FloatAdd, float, float>();
    table["sub" + type] = plain<FloatSubtract, float, float>();
    table["mul" + type] = plain<FloatMultiply, float, float>();
    table["fma" + type] = plain<Fma, float, float, float>();
  }
  table["add.rz.f32"] = plain<AddTowardZero, float, float>();
  table["fma.rm.f32"] = plain<FmaDown, float, float, float>();
  for (const char* form : {"div.rn.f32", "div.full.f32", "div.approx.f32"}) {
    table[form] = plain<FloatDivide, float, float>();
  }
  table["min.f32"] = plain<FloatLeast, float, float>();
  table["max.f32"] = plain<FloatGreatest, float, float>();
  table["copysign.f32"] = plain<CopySign, float, float>();
  table["neg.f32"] = plain<FloatNegate, float>();
  table["abs.f32"] = plain<FloatAbsolute, float>();
  table["rcp.rn.f32"] = plain<Reciprocal, float>();
  table["sqrt.rn.f32"] = plain<SquareRoot, float>();
  table["ex2.approx.f32"] = plain<Exp2, float>();
  table["ex2.approx.ftz.f32"] = plain<Exp2Flushed, float>();
  table["lg2.approx.f32"] = plain<Log2, float>();
  table["sub.f16x2"] = plain<SubtractHalves, HalfPair, HalfPair>();
  table["fma.rn.bf16x2"] = plain<FmaBrains, BrainPair, BrainPair, BrainPair>();
}

void add_others(Table& table) {
  table["mul.wide.s32"] = plain<MultiplyWide<int32_t, int64_t>, int32_t, int32_t>();
  table["mul.wide.u32"] = plain<MultiplyWide<uint32_t, uint64_t>, uint32_t, uint32_t>();
  table["mul.wide.s16"] = plain<MultiplyWide<int16_t, int32_t>, int16_t, int16_t>();
  table["mul.wide.u16"] = plain<MultiplyWide<uint16_t, uint32_t>, uint16_t, uint16_t>();
  table["mad.wide.s32"] = plain<MultiplyAddWide<int32_t, int64_t>, int32_t, int32_t, int64_t>();
  table["mad.wide.u32"] = plain<MultiplyAddWide<uint32_t, uint64_t>, uint32_t, uint32_t, uint64_t>();
  table["mul.hi.s32"] = plain<MultiplyHigh<int32_t, int64_t>, int32_t, int32_t>();
  table["mul.hi.u32"] = plain<MultiplyHigh<uint32_t, uint64_t>, uint32_t, uint32_t>();
  table["popc.b32"] = plain<CountOnes, uint32_t>();
  table["brev.b32"] = plain<Reverse, uint32_t>();
  table["bfind.shiftamt.u32"] = plain<ShiftToTop, uint32_t>();
  table["bfi.b32"] = plain<InsertBits<uint32_t>, uint32_t, uint32_t, uint32_t, uint32_t>();
  table["bfi.b64"] = plain<InsertBits<uint64_t>, uint64_t, uint64_t, uint32_t, uint32_t>();
  table["lop3.b32"] = plain<Lop3, uint32_t, uint32_t, uint32_t, uint32_t>();
  table["prmt.b32"] = plain<Permute, uint32_t, uint32_t, uint32_t>();
  table["and.pred"] = plain<PredicateAnd, Predicate, Predicate>();
  table["or.pred"] = plain<PredicateOr, Predicate, Predicate>();
  table["xor.pred"] = plain<PredicateXor, Predicate, Predicate>();
  table["not.pred"] = plain<PredicateNot, Predicate>();
  table["mov.pred"] = plain<Move<Predicate>, Predicate>();
  table["cvta.to.global.u64"] = plain<Move<uint64_t>, uint64_t>();
}

}  // namespace

void add_arithmetic(Table& table) {
  add_all_types(table);
  add_floats(table);
  add_others(table);
}

}  // namespace edge::ptx
