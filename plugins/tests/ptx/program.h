// A kernel as nvcc's PTX has it, ready to be run by a warp (PTX ISA 9.0, "PTX: Parallel Thread Execution").
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace edge::ptx {

constexpr unsigned kLanes = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;

// Where shared memory lies in a thread's addresses: no address of the host is as low.
constexpr uint64_t kSharedBase = uint64_t{1} << 24;
constexpr bool is_shared(uint64_t address) { return address >= kSharedBase && address < kSharedBase * 2; }

class Warp;
struct Instruction;

// What an instruction does for these lanes (bits) of a warp.
using Execute = void (*)(Warp&, const Instruction&, uint32_t lanes);

enum class Kind {
  kPlain,
  kBranch,
  kExit,
  kWarp,   // needs all lanes of the warp at once
  kBlock,  // a barrier of the block
};

// How an instruction reached memory, over all launches. A request is one instruction of one warp.
struct Traffic {
  bool shared = false;
  uint64_t requests = 0;
  uint64_t parts = 0;   // 32-byte sectors of global memory, or passes over the banks of shared memory
  uint64_t fewest = 0;  // parts, had what lanes asked for lain together
};

// Operands are registers, constants too: what a program needs of them is set before its first instruction.
struct Instruction {
  Kind kind = Kind::kPlain;
  Execute execute = nullptr;
  int guard = -1;  // register of the predicate, or none
  bool guard_negated = false;
  std::vector<int> operands;  // in the order of the text, braces and bars flattened; addresses apart
  std::vector<std::pair<int, int64_t>> addresses;  // register and offset in bytes
  int64_t number = 0;                              // what the opcode or an immediate operand says: bytes, groups
  size_t target = 0;                               // of a branch
  std::string text;
  int file = 0, line = 0;
  mutable Traffic traffic;
};

struct Parameter {
  size_t offset, bytes;
};

struct Program {
  std::string name;
  std::vector<Instruction> instructions;
  int registers = 0;
  std::vector<std::pair<int, uint64_t>> constants;       // register and value
  std::vector<std::pair<int, std::string>> specials;     // register and name, such as %tid.x
  std::vector<std::pair<int, size_t>> parameter_places;  // register and offset among the parameters
  std::vector<Parameter> parameters;
  size_t parameter_bytes = 0, static_shared_bytes = 0;
  unsigned most_threads = 1024;
  std::shared_ptr<const std::map<int, std::string>> files;
  mutable uint64_t launches = 0, instructions_run = 0;  // each counted once for a warp

  // Where an instruction stands in the source, as file:line.
  std::string place(const Instruction& instruction) const;
};

// The kernels of a PTX text, by name. Throws std::runtime_error for what is not known here.
std::map<std::string, Program> parse(const std::string& text);

}  // namespace edge::ptx
