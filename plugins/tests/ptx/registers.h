// How operations see a warp's registers.
#pragma once

#include <cstring>
#include <map>
#include <string>
#include <type_traits>
#include <utility>

#include "../../edge_plugins/native/half.h"
#include "operations.h"
#include "warp.h"

namespace edge::ptx {

using Table = std::map<std::string, Operation>;

// Each adds the instructions of its file.
void add_arithmetic(Table& table);
void add_conversions(Table& table);
void add_transfers(Table& table);
void add_meetings(Table& table);

// Numbers of two bytes; as integers they are uint16_t.
struct Half {
  uint16_t bits;
};
struct Brain {
  uint16_t bits;
};
struct HalfPair {
  Half low, high;
};
struct BrainPair {
  Brain low, high;
};
struct Predicate {
  uint64_t bits;
};

template <class T>
T get(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// What is left of a register beyond the value is 0; of signed integers, their sign.
template <class T>
uint64_t put(T value) {
  if constexpr (std::is_integral_v<T> && std::is_signed_v<T>) {
    return static_cast<uint64_t>(static_cast<int64_t>(value));
  } else {
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    return bits;
  }
}

// The first operand of every lane becomes Op::of(the others), each as its own type.
template <class Op, class... From>
struct Apply {
  template <size_t... I>
  static void run(Warp& warp, const Instruction& in, uint32_t lanes, std::index_sequence<I...>) {
    Register& to = warp.value(in.operands[0]);
    const Register* from[] = {&warp.value(in.operands[I + 1])...};
    each(lanes, [&](unsigned lane) { to[lane] = put(Op::of(get<From>((*from[I])[lane])...)); });
  }
  static void execute(Warp& warp, const Instruction& in, uint32_t lanes) {
    run(warp, in, lanes, std::index_sequence_for<From...>());
  }
};

template <class Op, class... From>
Operation plain() {
  return {Kind::kPlain, Apply<Op, From...>::execute, 0};
}

template <class T>
struct Move {
  static T of(T a) { return a; }
};

// Calls call(name, a number of it) for the types of registers and memory.
template <class Call>
void for_each_type(Call call) {
  call("u8", uint8_t{});
  call("b8", uint8_t{});
  call("s8", int8_t{});
  call("u16", uint16_t{});
  call("b16", uint16_t{});
  call("s16", int16_t{});
  call("u32", uint32_t{});
  call("b32", uint32_t{});
  call("s32", int32_t{});
  call("u64", uint64_t{});
  call("b64", uint64_t{});
  call("s64", int64_t{});
  call("f32", float{});
}

inline float wide(Half x) { return float16_to_float(x.bits); }
inline float wide(Brain x) { return bfloat16_to_float(x.bits); }

// To the nearest, ties to even.
template <class T>
T narrow(float x) {
  if constexpr (std::is_same_v<T, Half>) return {float_to_float16(x)};
  if constexpr (std::is_same_v<T, Brain>) return {float_to_bfloat16(x)};
}

}  // namespace edge::ptx
