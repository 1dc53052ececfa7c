// What PTX's instructions do (PTX ISA 9.0, "Instruction Set").
#pragma once

#include <string>

#include "program.h"

namespace edge::ptx {

struct Operation {
  Kind kind = Kind::kPlain;
  Execute execute = nullptr;
  int64_t number = 0;
};

// Of an opcode with all its suffixes, such as mul.wide.s32. Throws std::runtime_error for one that is not known here.
Operation find_operation(const std::string& opcode);

}  // namespace edge::ptx
