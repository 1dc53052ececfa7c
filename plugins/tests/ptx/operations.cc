#include "operations.h"

#include <stdexcept>

#include "registers.h"

namespace edge::ptx {
namespace {

void add_control(Table& table) {
  for (const char* name : {"bra", "bra.uni"}) table[name] = {Kind::kBranch, nullptr, 0};
  for (const char* name : {"ret", "exit"}) table[name] = {Kind::kExit, nullptr, 0};
  table["bar.sync"] = {Kind::kBlock, nullptr, 0};
}

}  // namespace

Operation find_operation(const std::string& opcode) {
  static const Table table = [] {
    Table made;
    add_control(made);
    add_arithmetic(made);
    add_conversions(made);
    add_transfers(made);
    add_meetings(made);
    return made;
  }();
  const auto found = table.find(opcode);
  if (found == table.end()) throw std::runtime_error("a PTX instruction that is not known here: " + opcode);
  return found->second;
}

}  // namespace edge::ptx
