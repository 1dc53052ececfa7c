// What the plugins say, through TensorRT's own logger.
#pragma once

#include <cstdint>
#include <string>

namespace edge::trt {

enum class Severity : int32_t { kError = 1, kWarning = 2, kInfo = 3 };  // TensorRT's numbers

// To the logger of the builder or runtime that called us; to stderr where there is none.
void log(Severity severity, const std::string& message) noexcept;

// From now on the logger is what `finder` finds: an ILoggerFinder of TensorRT of this version, as getInferLibVersion
// tells it (11.1 is 110100, TensorRT-RTX 1.7.1 is 10701), or nullptr.
void use_logger_finder(void* finder, int32_t version);

// ---- ILogger and ILoggerFinder, whose tables of functions TensorRT 11 changed: it put IVersionedInterface below ----

struct Unversioned {};

// Its functions are never called: only their places matter.
class Versioned {
 public:
  virtual void getAPILanguage() const noexcept {}
  virtual void getInterfaceInfo() const noexcept {}
  virtual ~Versioned() noexcept = default;
};

template <class Base>
class Logger : public Base {
 public:
  virtual void log(Severity severity, const char* message) noexcept = 0;
  virtual ~Logger() = default;
};

template <class Base>
class LoggerFinder : public Base {
 public:
  virtual Logger<Base>* findLogger() = 0;

 protected:
  virtual ~LoggerFinder() = default;
};

}  // namespace edge::trt
