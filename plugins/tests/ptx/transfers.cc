// Moves between registers, and to and from memory.
#include "registers.h"

namespace edge::ptx {
namespace {

// ---- Moves that change widths ----

// Two registers of half the width as one, and back.
template <class Part>
void join(Warp& warp, const Instruction& in, uint32_t lanes) {
  const Register low = warp.value(in.operands[1]), high = warp.value(in.operands[2]);
  each(lanes, [&](unsigned lane) {
    warp.value(in.operands[0])[lane] = uint64_t{get<Part>(low[lane])} | uint64_t{get<Part>(high[lane])}
                                                                            << (sizeof(Part) * 8);
  });
}
template <class Part>
void part(Warp& warp, const Instruction& in, uint32_t lanes) {
  const Register whole = warp.value(in.operands[2]);
  each(lanes, [&](unsigned lane) {
    warp.value(in.operands[0])[lane] = get<Part>(whole[lane]);
    warp.value(in.operands[1])[lane] = get<Part>(whole[lane] >> (sizeof(Part) * 8));
  });
}

// mov, by how many operands there are.
template <class T>
void move(Warp& warp, const Instruction& in, uint32_t lanes) {
  if (in.operands.size() == 2) return Apply<Move<T>, T>::execute(warp, in, lanes);
  using Part = std::conditional_t<sizeof(T) == 8, uint32_t, uint16_t>;
  const std::string operands = in.text.substr(in.text.find_first_of(" \t"));
  const bool parts = operands.find('{') < operands.find(',');  // mov.b32 {low, high}, whole
  return parts ? part<Part>(warp, in, lanes) : join<Part>(warp, in, lanes);
}

// ---- Memory ----

Register addresses_of(Warp& warp, const Instruction& in, size_t which = 0) {
  const auto [base, offset] = in.addresses[which];
  Register addresses = warp.value(base);
  for (uint64_t& address : addresses) address += static_cast<uint64_t>(offset);
  return addresses;
}

// `number` of them, one after another. A narrow signed one fills its register with its sign.
template <class T>
void load(Warp& warp, const Instruction& in, uint32_t lanes) {
  const Register addresses = addresses_of(warp, in);
  const size_t bytes = sizeof(T) * static_cast<size_t>(in.number);
  warp.account(in, addresses, bytes, lanes);
  each(lanes, [&](unsigned lane) {
    const unsigned char* from = warp.read(in, addresses[lane], bytes, lane);
    for (int64_t i = 0; i < in.number; ++i) {
      T value;
      std::memcpy(&value, from + (static_cast<size_t>(i) * sizeof value), sizeof value);
      warp.value(in.operands[static_cast<size_t>(i)])[lane] = put(value);
    }
  });
}

template <class T>
void load_parameter(Warp& warp, const Instruction& in, uint32_t lanes) {
  const Register addresses = addresses_of(warp, in);
  each(lanes, [&](unsigned lane) {
    for (int64_t i = 0; i < in.number; ++i) {
      T value;
      std::memcpy(&value, reinterpret_cast<const T*>(addresses[lane]) + i, sizeof value);
      warp.value(in.operands[static_cast<size_t>(i)])[lane] = put(value);
    }
  });
}

template <class T>
void store(Warp& warp, const Instruction& in, uint32_t lanes) {
  const Register addresses = addresses_of(warp, in);
  const size_t bytes = sizeof(T) * static_cast<size_t>(in.number);
  warp.account(in, addresses, bytes, lanes);
  each(lanes, [&](unsigned lane) {
    unsigned char* to = warp.write(in, addresses[lane], bytes, lane);
    for (int64_t i = 0; i < in.number; ++i) {
      const T value = get<T>(warp.value(in.operands[static_cast<size_t>(i)])[lane]);
      std::memcpy(to + (static_cast<size_t>(i) * sizeof value), &value, sizeof value);
    }
  });
}

// cp.async [to], [from], bytes, bytes of them that are read: the others become 0.
void copy_async(Warp& warp, const Instruction& in, uint32_t lanes) {
  const Register to = addresses_of(warp, in, 0), from = addresses_of(warp, in, 1);
  const Register &bytes = warp.value(in.operands[0]), &given = warp.value(in.operands[1]);
  uint32_t reading = 0;
  each(lanes, [&](unsigned lane) {
    warp.copy_async(in, to[lane], from[lane], bytes[lane], get<uint32_t>(given[lane]), lane);
    reading |= (get<uint32_t>(given[lane]) != 0 ? 1u : 0u) << lane;
  });
  if (reading != 0) warp.account(in, from, bytes[0], reading);
}

void commit_async(Warp& warp, const Instruction&, uint32_t lanes) { warp.commit_async(lanes); }

void wait_async(Warp& warp, const Instruction& in, uint32_t lanes) {
  warp.wait_async(in, warp.value(in.operands[0])[0], lanes);
}

// atom.inc d, [at], limit.
void increment(Warp& warp, const Instruction& in, uint32_t lanes) {
  const Register addresses = addresses_of(warp, in), limits = warp.value(in.operands[1]);
  each(lanes, [&](unsigned lane) {
    warp.value(in.operands[0])[lane] = warp.increment(in, addresses[lane], get<uint32_t>(limits[lane]), lane);
  });
}

void fence(Warp& warp, const Instruction&, uint32_t lanes) { warp.fence(lanes); }

// ldmatrix.x4 {4 registers}, [row]: lane l names row l % 8 of matrix l / 8.
template <bool kTransposed>
void load_matrices(Warp& warp, const Instruction& in, uint32_t) {
  const Register addresses = addresses_of(warp, in);
  warp.account(in, addresses, 16, kAllLanes);
  uint16_t matrices[4][8][8];
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    std::memcpy(matrices[lane / 8][lane % 8], warp.read(in, addresses[lane], 16, lane), 16);
  }
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    for (unsigned m = 0; m < 4; ++m) {
      const unsigned row = lane / 4, column = lane % 4 * 2;
      const auto& matrix = matrices[m];
      const uint32_t low = kTransposed ? matrix[column][row] : matrix[row][column];
      const uint32_t high = kTransposed ? matrix[column + 1][row] : matrix[row][column + 1];
      warp.value(in.operands[m])[lane] = low | high << 16;
    }
  }
}

// ---- The table ----

template <class T>
void add_moves(Table& table, const std::string& type) {
  table["mov." + type] = {Kind::kPlain, move<T>, 0};
  for (const int64_t count : {1, 2, 4}) {
    const std::string form = (count == 1 ? "" : ".v" + std::to_string(count)) + "." + type;
    for (const char* space : {"global", "shared", "volatile.global", "volatile.shared"}) {
      table["ld." + std::string(space) + form] = {Kind::kPlain, load<T>, count};
      table["st." + std::string(space) + form] = {Kind::kPlain, store<T>, count};
    }
    table["ld.param" + form] = {Kind::kPlain, load_parameter<T>, count};
  }
}

}  // namespace

void add_transfers(Table& table) {
  for_each_type([&](const char* name, auto type) { add_moves<decltype(type)>(table, name); });
  table["ldmatrix.sync.aligned.m8n8.x4.shared.b16"] = {Kind::kWarp, load_matrices<false>, 0};
  table["ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16"] = {Kind::kWarp, load_matrices<true>, 0};
  for (const char* name : {"cp.async.cg.shared.global", "cp.async.ca.shared.global"}) {
    table[name] = {Kind::kPlain, copy_async, 0};
  }
  table["cp.async.commit_group"] = {Kind::kPlain, commit_async, 0};
  table["atom.global.inc.u32"] = {Kind::kPlain, increment, 0};
  table["fence.acq_rel.gpu"] = {Kind::kPlain, fence, 0};
  table["cp.async.wait_group"] = {Kind::kPlain, wait_async, 0};
}

}  // namespace edge::ptx
