#include "program.h"

#include <cctype>
#include <cstring>
#include <stdexcept>

#include "operations.h"

namespace edge::ptx {
namespace {

bool starts_with(const std::string& text, const char* with) { return text.rfind(with, 0) == 0; }

// The texts between separators, without spaces around them.
std::vector<std::string> split(const std::string& text, const std::string& separators) {
  std::vector<std::string> parts;
  std::string part;
  for (const char c : text + separators[0]) {
    if (separators.find(c) == std::string::npos) {
      part += c;
      continue;
    }
    const size_t from = part.find_first_not_of(" \t\n"), to = part.find_last_not_of(" \t\n");
    if (from != std::string::npos) parts.push_back(part.substr(from, to - from + 1));
    part.clear();
  }
  return parts;
}

std::string without_comments(const std::string& text) {
  std::string kept;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text.compare(i, 2, "//") == 0) i = std::min(text.find('\n', i), text.size() - 1);
    kept += text[i];
  }
  return kept;
}

size_t bytes_of(const std::string& type) {  // .u32 and the like
  const size_t digits = type.find_first_of("0123456789");
  return digits == std::string::npos ? 1 : std::stoul(type.substr(digits)) / 8;
}

size_t up_to(size_t bytes, size_t alignment) { return (bytes + alignment - 1) / alignment * alignment; }

// What a declaration such as `.param .align 8 .b8 name[96]` says.
struct Declared {
  std::string name;
  size_t bytes = 0, alignment = 1;
};

Declared declaration(const std::string& text) {
  Declared found;
  const std::vector<std::string> words = split(text, " \t\n");
  found.name = words.back();
  for (size_t i = 0; i + 1 < words.size(); ++i) {
    if (words[i] == ".align") {
      found.alignment = std::stoul(words[i + 1]);
    } else if (words[i].size() > 2 && std::isdigit(words[i].back()) && words[i][0] == '.') {
      found.bytes = bytes_of(words[i]);
    }
  }
  found.alignment = std::max(found.alignment, found.bytes);
  const size_t bracket = found.name.find('[');
  if (bracket != std::string::npos) {
    const std::string count = found.name.substr(bracket + 1, found.name.size() - bracket - 2);
    found.bytes *= count.empty() ? 0 : std::stoul(count);
    found.name.resize(bracket);
  }
  return found;
}

// Reads one kernel.
class Reader {
 public:
  Reader(const std::string& text, size_t at, const std::map<std::string, uint64_t>& shared) : text_(text), at_(at) {
    symbols_ = shared;
  }

  Program read() {
    const size_t name_end = text_.find('(', at_), parameters_end = text_.find(')', at_);
    program_.name = split(text_.substr(at_, name_end - at_), " \t\n").back();
    for (const std::string& each : split(text_.substr(name_end + 1, parameters_end - name_end - 1), ",")) {
      const Declared parameter = declaration(each);
      const size_t offset = up_to(program_.parameter_bytes, parameter.alignment);
      program_.parameters.push_back({offset, parameter.bytes});
      program_.parameter_bytes = offset + parameter.bytes;
      parameters_[parameter.name] = offset;
    }
    const size_t body = text_.find('{', parameters_end);
    const std::string head = text_.substr(parameters_end + 1, body - parameters_end - 1);
    if (head.find(".maxntid") != std::string::npos) {
      program_.most_threads = static_cast<unsigned>(std::stoul(head.substr(head.find(".maxntid") + 8)));
    }
    at_ = body + 1;
    for (int depth = 1; depth > 0;) {
      const char c = text_[at_];
      if (std::isspace(static_cast<unsigned char>(c)) || c == '{' || c == '}') {
        depth += c == '{' ? 1 : c == '}' ? -1 : 0;
        ++at_;
      } else {
        statement();
      }
    }
    for (const auto& [instruction, label] : branches_) program_.instructions[instruction].target = labels_.at(label);
    return std::move(program_);
  }

  size_t end() const { return at_; }

 private:
  void statement() {
    if (text_.compare(at_, 5, ".loc\t") == 0 || text_.compare(at_, 5, ".loc ") == 0) {
      const std::vector<std::string> words = split(until("\n"), " \t,");
      file_ = std::stoi(words[1]);
      line_ = std::stoi(words[2]);
      return;
    }
    size_t end = text_.find_first_of(";:", at_);
    while (text_[end] == ':' && text_[end + 1] == ':') end = text_.find_first_of(";:", end + 2);
    const std::string found = text_.substr(at_, end - at_);
    at_ = end + 1;
    if (text_[end] == ':') {
      labels_[found] = program_.instructions.size();
    } else if (starts_with(found, ".shared")) {
      const Declared variable = declaration(found);
      const size_t offset = up_to(program_.static_shared_bytes, variable.alignment);
      symbols_[variable.name] = kSharedBase + offset;
      program_.static_shared_bytes = offset + variable.bytes;
    } else if (found[0] != '.') {
      instruction(found);
    } else if (!starts_with(found, ".reg") && !starts_with(found, ".pragma")) {
      throw std::runtime_error("PTX that is not known here: " + found);
    }
  }

  std::string until(const char* stop) {
    const size_t end = text_.find(stop, at_);
    const std::string found = text_.substr(at_, end - at_);
    at_ = end + 1;
    return found;
  }

  void instruction(std::string text) {
    Instruction made;
    made.text = text;
    made.file = file_;
    made.line = line_;
    if (text[0] == '@') {
      const size_t end = text.find_first_of(" \t");
      made.guard_negated = text[1] == '!';
      made.guard = named(text.substr(made.guard_negated ? 2 : 1, end - (made.guard_negated ? 2 : 1)));
      text = text.substr(text.find_first_not_of(" \t", end));
    }
    const size_t end = text.find_first_of(" \t");
    const std::string opcode = text.substr(0, end);
    const Operation operation = find_operation(opcode);
    made.kind = operation.kind;
    made.execute = operation.execute;
    made.number = operation.number;
    if (made.guard >= 0 && (made.kind == Kind::kWarp || made.kind == Kind::kBlock))
      throw std::runtime_error("a predicate before " + text);
    const std::string rest = end == std::string::npos ? "" : text.substr(end);
    if (made.kind == Kind::kBranch) {
      branches_.emplace_back(program_.instructions.size(), split(rest, " \t")[0]);
    } else {
      for (const std::string& operand : split(rest, ",{}|")) add_operand(made, operand);
    }
    program_.instructions.push_back(std::move(made));
  }

  void add_operand(Instruction& made, const std::string& operand) {
    if (operand[0] != '[') {
      made.operands.push_back(named(operand));
      return;
    }
    const std::string inner = operand.substr(1, operand.size() - 2);
    const size_t plus = inner.find('+');
    made.addresses.emplace_back(named(inner.substr(0, plus)),
                                plus == std::string::npos ? 0 : std::stoll(inner.substr(plus + 1)));
  }

  // The register that holds what is named: a register's own, or one made for a constant, a symbol, a special register.
  int named(const std::string& name) {
    const auto [entry, is_new] = registers_.emplace(name, program_.registers);
    if (!is_new) return entry->second;
    const int index = program_.registers++;
    if (std::isdigit(static_cast<unsigned char>(name[0])) || name[0] == '-') {
      program_.constants.emplace_back(index, number(name));
    } else if (parameters_.count(name)) {
      program_.parameter_places.emplace_back(index, parameters_.at(name));
    } else if (symbols_.count(name)) {
      program_.constants.emplace_back(index, symbols_.at(name));
    } else if (name[0] == '%' && (name.find('.') != std::string::npos || name == "%laneid")) {
      program_.specials.emplace_back(index, name);
    } else if (name[0] != '%' && name.size() > 1) {
      throw std::runtime_error("a symbol that is not known here: " + name);
    }
    return index;
  }

  static uint64_t number(const std::string& text) {
    if (text.compare(0, 2, "0f") == 0 || text.compare(0, 2, "0F") == 0) return std::stoull(text.substr(2), nullptr, 16);
    if (text[0] == '-') return static_cast<uint64_t>(std::stoll(text, nullptr, 0));
    return std::stoull(text, nullptr, 0);
  }

  const std::string& text_;
  size_t at_;
  Program program_;
  std::map<std::string, int> registers_;
  std::map<std::string, size_t> parameters_, labels_;
  std::map<std::string, uint64_t> symbols_;
  std::vector<std::pair<size_t, std::string>> branches_;
  int file_ = 0, line_ = 0;
};

}  // namespace

std::string Program::place(const Instruction& instruction) const {
  const auto file = files->find(instruction.file);
  const std::string path = file == files->end() ? "?" : file->second;
  return path.substr(path.rfind('/') + 1) + ":" + std::to_string(instruction.line);
}

std::map<std::string, Program> parse(const std::string& commented) {
  const std::string text = without_comments(commented);
  std::map<std::string, uint64_t> shared;
  for (size_t at = text.find(".extern .shared"); at != std::string::npos; at = text.find(".extern .shared", at + 1)) {
    shared[declaration(text.substr(at, text.find(';', at) - at)).name] = kSharedBase;
  }
  auto files = std::make_shared<std::map<int, std::string>>();
  for (size_t at = text.find(".file"); at != std::string::npos; at = text.find(".file", at + 1)) {
    const std::vector<std::string> words = split(text.substr(at, text.find('\n', at) - at), "\t \"");
    (*files)[std::stoi(words[1])] = words[2];
  }
  std::map<std::string, Program> programs;
  for (size_t at = text.find(".entry"); at != std::string::npos; at = text.find(".entry", at)) {
    Reader reader(text, at, shared);
    Program program = reader.read();
    program.files = files;
    if (program.static_shared_bytes != 0 && !shared.empty())
      throw std::runtime_error(program.name + ": static beside dynamic shared memory is not known here");
    at = reader.end();
    programs.emplace(program.name, std::move(program));
  }
  return programs;
}

}  // namespace edge::ptx
