// A million single steps of Mamba2Mixer, states in place: no drift from the recurrence in double, no growth of memory.
//
// soak_test [instruction set [steps]]. At eight tokens a second that is a day and a half of talking.
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <new>

#include "check.h"

namespace {

int64_t allocations = 0;

}  // namespace

void* operator new(size_t size) {
  ++allocations;
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
void* operator new(size_t size, std::align_val_t alignment) {
  ++allocations;
  if (void* memory = std::aligned_alloc(static_cast<size_t>(alignment), size)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace edge::test {
namespace {

constexpr int64_t kHeads = 4, kHeadDim = 16, kGroups = 2, kState = 16, kTaps = 4;
constexpr int64_t kInner = kHeads * kHeadDim, kConvDim = kInner + (2 * kGroups * kState);
constexpr int64_t kWidth = kInner + kConvDim + kHeads;

struct Layer {
  Floats proj = Floats::normal(kWidth), conv_weight = Floats::normal(kConvDim * kTaps, 0.5f),
         conv_bias = Floats::normal(kConvDim, 0.1f), dt_bias = Floats::uniform(kHeads, -5, -1),
         a_log = Floats::uniform(kHeads, 0, 2.8f), d = Floats::normal(kHeads),
         norm_weight = Floats::uniform(kInner, 0.5f, 1.5f), conv{kConvDim * (kTaps - 1)}, ssm{kInner * kState},
         y{kInner};
  Mamba2MixerArgs args{1,
                       1,
                       kHeads,
                       kHeadDim,
                       kGroups,
                       kState,
                       kTaps,
                       1e-5f,
                       0.0f,
                       3.4e38f,
                       proj.data(),
                       conv_weight.data(),
                       conv_bias.data(),
                       dt_bias.data(),
                       a_log.data(),
                       d.data(),
                       norm_weight.data(),
                       conv.data(),
                       ssm.data(),
                       Type::kFloat32,
                       y.data(),
                       conv.data(),
                       ssm.data()};
};

double silu(double x) { return x / (1 + std::exp(-x)); }

// The same layer in double, with states of its own.
class Recurrence {
 public:
  explicit Recurrence(Layer& layer) : l_(layer), conv_(kConvDim * (kTaps - 1)), ssm_(kInner * kState), y_(kInner) {}

  const std::vector<double>& ssm() const { return ssm_; }
  const std::vector<double>& y() const { return y_; }

  void step() {
    for (int64_t c = 0; c < kConvDim; ++c) {
      double* past = &conv_[static_cast<size_t>(c * (kTaps - 1))];
      const double now = l_.proj[kInner + c];
      double sum = l_.conv_bias[c] + l_.conv_weight[(c * kTaps) + kTaps - 1] * now;
      for (int64_t t = 0; t + 1 < kTaps; ++t) sum += l_.conv_weight[(c * kTaps) + t] * past[t];
      for (int64_t t = 0; t + 2 < kTaps; ++t) past[t] = past[t + 1];
      past[kTaps - 2] = now;
      xbc_[c] = silu(sum);
    }
    for (int64_t h = 0; h < kHeads; ++h) scan(h);
    for (int64_t g = 0; g < kGroups; ++g) normalise(&y_[static_cast<size_t>(g * kInner / kGroups)], g);
  }

 private:
  void scan(int64_t h) {
    const double dt = std::log1p(std::exp(double{l_.proj[kInner + kConvDim + h]} + l_.dt_bias[h]));
    const double decay = std::exp(-dt * std::exp(double{l_.a_log[h]}));
    const double* b = xbc_ + kInner + (h / (kHeads / kGroups) * kState);
    const double* c = b + (kGroups * kState);
    for (int64_t p = h * kHeadDim; p < (h + 1) * kHeadDim; ++p) {
      double* state = &ssm_[static_cast<size_t>(p * kState)];
      double y = l_.d[h] * xbc_[p];
      for (int64_t n = 0; n < kState; ++n) {
        state[n] = decay * state[n] + dt * xbc_[p] * b[n];
        y += state[n] * c[n];
      }
      y_[static_cast<size_t>(p)] = y * silu(l_.proj[p]);
    }
  }

  void normalise(double* y, int64_t group) {
    constexpr int64_t width = kInner / kGroups;
    double squares = 0;
    for (int64_t i = 0; i < width; ++i) squares += y[i] * y[i];
    const double scale = 1 / std::sqrt(squares / width + l_.args.eps);
    for (int64_t i = 0; i < width; ++i) y[i] *= scale * l_.norm_weight[(group * width) + i];
  }

  Layer& l_;
  std::vector<double> conv_, ssm_, y_;
  double xbc_[kConvDim] = {};
};

int64_t resident_bytes() {
  std::ifstream file("/proc/self/statm");
  int64_t all = 0, resident = 0;
  file >> all >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

void soak(const Kernels& kernels, int64_t steps) {
  Layer layer;
  Recurrence exact(layer);
  std::uniform_real_distribution<float> uniform(-2, 2);
  int64_t resident = 0, allocated = 0;
  for (int64_t step = 0; step < steps; ++step) {
    for (int64_t i = 0; i < kWidth; ++i) layer.proj[i] = uniform(random_bits());
    const int64_t before = allocations;
    kernels.mamba2_mixer(layer.args, Parallel());
    if (step > 0) allocated += allocations - before;
    exact.step();
    if (step % (steps / 20) == steps / 20 - 1) {
      check_close(layer.y, exact.y(), 2e-5, "y after step " + std::to_string(step));
      check_close(layer.ssm, exact.ssm(), 2e-5, "state after step " + std::to_string(step));
      if (resident == 0) resident = resident_bytes();
    }
  }
  check(allocated == 0, "steps allocate: " + std::to_string(allocated));
  check(resident_bytes() - resident < 1 << 18, "memory grew by " + std::to_string(resident_bytes() - resident));
}

}  // namespace
}  // namespace edge::test

int main(int argc, char** argv) {
  edge::test::soak(edge::choose_kernels(argc > 1 ? argv[1] : "auto"), argc > 2 ? std::atoll(argv[2]) : 1000000);
  std::printf("%d passed, %d failed\n", edge::test::count().passed, edge::test::count().failed);
  return edge::test::count().failed == 0 ? 0 : 1;
}
