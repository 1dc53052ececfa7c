#include "trt_log.h"

#include <atomic>
#include <cstdio>

namespace edge::trt {
namespace {

std::atomic<LoggerFinder<Unversioned>*> old_finder{nullptr};
std::atomic<LoggerFinder<Versioned>*> new_finder{nullptr};

template <class Base>
bool say(LoggerFinder<Base>* finder, Severity severity, const char* message) {
  Logger<Base>* logger = finder != nullptr ? finder->findLogger() : nullptr;
  if (logger != nullptr) logger->log(severity, message);
  return logger != nullptr;
}

}  // namespace

void use_logger_finder(void* finder, int32_t version) {
  const bool enterprise = version >= 100000, old = enterprise && version < 110000;
  const bool rtx = version >= 10700 && version < 20000;  // the oldest that was tried
  old_finder = old ? static_cast<LoggerFinder<Unversioned>*>(finder) : nullptr;
  new_finder = !old && (enterprise || rtx) ? static_cast<LoggerFinder<Versioned>*>(finder) : nullptr;
}

void log(Severity severity, const std::string& message) noexcept {
  try {
    const std::string text = "[edge plugins] " + message;
    if (say(old_finder.load(), severity, text.c_str()) || say(new_finder.load(), severity, text.c_str())) return;
    std::fprintf(stderr, "%s\n", text.c_str());
  } catch (...) {
    std::fputs("[edge plugins] no memory to say what is wrong\n", stderr);
  }
}

}  // namespace edge::trt
