// A CUDA runtime that runs the kernels' PTX on the CPU: what the tests' programs need of it.
//
// A program that nvcc compiled with its PTX, not compressed, is linked with this in the place of NVIDIA's library.
#include <cxxabi.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <utility>

#include "warp.h"

namespace edge::ptx {
namespace {

constexpr size_t kUsualShared = size_t{48} << 10;    // without an attribute of the kernel
constexpr size_t kLargestShared = size_t{99} << 10;  // of a block, on the smallest of the GPUs that are built for
constexpr unsigned kLargestGrid = 65535;             // along y and z

// cudaError_t
enum Status { kSuccess = 0, kInvalidValue = 1, kInvalidConfiguration = 9, kInvalidFunction = 98, kLaunchFailure = 719 };

struct Kernel {
  const Program* program;
  size_t shared_limit = kUsualShared;
};

struct Configuration {
  Size grid, threads;
  size_t shared_bytes;
  void* stream;
};

std::string readable(const std::string& mangled) {
  int status = 0;
  char* name = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status);
  std::string found = status == 0 ? name : mangled;
  std::free(name);
  return found;
}

class Runtime {
 public:
  // The image of a fat binary: a header of 16 bytes, then for each code its kind, the length of its own header, and its
  // length.
  void add_image(const unsigned char* image) {
    const auto field = [&](size_t at, size_t bytes) {
      uint64_t value = 0;
      std::memcpy(&value, image + at, bytes);
      return value;
    };
    const size_t header = field(6, 2), end = header + field(8, 8);
    for (size_t at = header; at < end; at += field(at + 4, 4) + field(at + 8, 8)) {
      constexpr uint64_t kPtx = 1;
      if (field(at, 2) != kPtx) continue;
      const auto* text = reinterpret_cast<const char*>(image + at + field(at + 4, 4));
      const std::string ptx(text, strnlen(text, field(at + 8, 8)));
      if (ptx.find(".version") == std::string::npos)
        throw std::runtime_error("PTX that is compressed: compile with -Xfatbin=-compress=false");
      for (auto& [name, program] : parse(ptx)) programs_.emplace(name, std::move(program));
    }
  }

  void add_kernel(const void* function, const char* name) {
    const auto program = programs_.find(name);
    if (program == programs_.end()) throw std::runtime_error("no PTX of " + std::string(name));
    kernels_[function] = Kernel{&program->second};
  }

  Kernel* find(const void* function) {
    const auto found = kernels_.find(function);
    return found == kernels_.end() ? nullptr : &found->second;
  }

  // What goes wrong in a kernel is told when one waits for it, as a GPU does.
  Status launch(const Kernel& kernel, Size grid, Size threads, void** arguments, size_t shared_bytes) {
    const Program& program = *kernel.program;
    const bool fits = grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.y <= kLargestGrid && grid.z <= kLargestGrid &&
                      threads.x > 0 && threads.x <= program.most_threads && threads.y == 1 && threads.z == 1 &&
                      shared_bytes + program.static_shared_bytes <= kernel.shared_limit;
    if (!fits) return last_ = kInvalidConfiguration;
    std::vector<unsigned char> parameters(program.parameter_bytes);
    for (size_t i = 0; i < program.parameters.size(); ++i) {
      const Parameter& parameter = program.parameters[i];
      std::memcpy(parameters.data() + parameter.offset, arguments[i], parameter.bytes);
    }
    ++program.launches;
    try {
      std::map<uint64_t, Seen> released;
      run({&program, grid, threads, shared_bytes, parameters.data(), &memory, &released, ++launches_, backward});
    } catch (const std::exception& error) {
      failure_ = error.what();
    }
    return kSuccess;
  }

  Status synchronize() const { return failure_.empty() ? kSuccess : kLaunchFailure; }
  Status take_last() { return std::exchange(last_, kSuccess); }
  Status refuse() { return last_ = kInvalidValue; }

  // A kernel's failure is forgotten once it has been told; on a GPU it would stay.
  const char* describe(int status) {
    if (status == kInvalidConfiguration) return "invalid configuration argument";
    if (status != kLaunchFailure) return status == kSuccess ? "no error" : "invalid argument";
    told_ = std::exchange(failure_, "");
    return told_.c_str();
  }

  // Tab-separated lines: for a kernel its name, launches and instructions; then for each of its instructions that
  // reached memory a dash, its place, "shared" or "global", requests, parts and the fewest parts (Traffic).
  void report(const char* path) const {
    std::ofstream file(path);
    for (const auto& [name, program] : programs_) {
      if (program.launches == 0) continue;
      file << readable(name) << '\t' << program.launches << '\t' << program.instructions_run << '\n';
      for (const Instruction& instruction : program.instructions) {
        const Traffic& t = instruction.traffic;
        if (t.requests == 0) continue;
        file << "-\t" << program.place(instruction) << '\t' << (t.shared ? "shared" : "global") << '\t' << t.requests
             << '\t' << t.parts << '\t' << t.fewest << '\n';
      }
    }
  }

  void forget() {
    for (auto& [name, program] : programs_) {
      program.launches = program.instructions_run = 0;
      for (Instruction& instruction : program.instructions) instruction.traffic = Traffic();
    }
  }

  GlobalMemory memory;
  std::vector<Configuration> configurations;
  bool backward = false;

 private:
  std::map<std::string, Program> programs_;
  std::map<const void*, Kernel> kernels_;
  uint32_t launches_ = 0;
  Status last_ = kSuccess;
  std::string failure_, told_;
};

Runtime& runtime() {
  static Runtime runtime;
  return runtime;
}

}  // namespace
}  // namespace edge::ptx

using edge::ptx::runtime;
using edge::ptx::Size;

extern "C" {

// ---- For the tests ----

void edge_ptx_set_backward(int backward) { runtime().backward = backward != 0; }
void edge_ptx_forget() { runtime().forget(); }
void edge_ptx_report(const char* path) { runtime().report(path); }

// ---- What nvcc puts into a program (crt/host_runtime.h) ----

void** __cudaRegisterFatBinary(void* wrapper) {
  const unsigned char* image;
  std::memcpy(&image, static_cast<unsigned char*>(wrapper) + 8, sizeof image);
  runtime().add_image(image);
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int, void*, void*, void*, void*,
                            int*) {
  runtime().add_kernel(function, name);
}
unsigned __cudaPushCallConfiguration(Size grid, Size threads, size_t shared_bytes, void* stream) {
  runtime().configurations.push_back({grid, threads, shared_bytes, stream});
  return 0;
}
int __cudaPopCallConfiguration(Size* grid, Size* threads, size_t* shared_bytes, void** stream) {
  const auto configuration = runtime().configurations.back();
  runtime().configurations.pop_back();
  *grid = configuration.grid;
  *threads = configuration.threads;
  *shared_bytes = configuration.shared_bytes;
  *stream = configuration.stream;
  return 0;
}
int __cudaGetKernel(void** kernel, const void* function) {
  *kernel = runtime().find(function);
  return *kernel == nullptr ? edge::ptx::kInvalidFunction : 0;
}
int __cudaLaunchKernel(void* kernel, Size grid, Size threads, void** arguments, size_t shared_bytes, void*) {
  return runtime().launch(*static_cast<edge::ptx::Kernel*>(kernel), grid, threads, arguments, shared_bytes);
}

// Before CUDA 13.
int cudaLaunchKernel(const void* function, Size grid, Size threads, void** arguments, size_t shared_bytes, void*) {
  edge::ptx::Kernel* kernel = runtime().find(function);
  if (kernel == nullptr) return edge::ptx::kInvalidFunction;
  return runtime().launch(*kernel, grid, threads, arguments, shared_bytes);
}

// ---- CUDA's own ----

int cudaFuncSetAttribute(const void* function, int attribute, int value) {
  constexpr int kMaxDynamicSharedMemorySize = 8;
  edge::ptx::Kernel* kernel = runtime().find(function);
  const bool known = kernel != nullptr && attribute == kMaxDynamicSharedMemorySize;
  if (!known || value < 0 || static_cast<size_t>(value) > edge::ptx::kLargestShared) return runtime().refuse();
  kernel->shared_limit = std::max(edge::ptx::kUsualShared, static_cast<size_t>(value));
  return 0;
}
int cudaMalloc(void** at, size_t bytes) {
  *at = runtime().memory.allocate(bytes);
  return 0;
}
int cudaFree(void* at) {
  runtime().memory.release(at);
  return 0;
}
int cudaMemset(void* at, int value, size_t bytes) {
  std::memset(at, value, bytes);
  return 0;
}
int cudaMemcpy(void* to, const void* from, size_t bytes, int) {
  std::memcpy(to, from, bytes);
  return 0;
}
int cudaDeviceSynchronize() { return runtime().synchronize(); }
int cudaGetLastError() { return runtime().take_last(); }
const char* cudaGetErrorString(int status) { return runtime().describe(status); }

}  // extern "C"
