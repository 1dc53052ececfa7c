// What the native tests share: checks that are counted, random arrays, ways of running tasks.
#pragma once

#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "../edge_plugins/native/isa.h"
#include "reference.h"

namespace edge::test {

struct Count {
  int passed = 0, failed = 0;
};
inline Count& count() {
  static Count all;
  return all;
}

inline void check(bool fine, const std::string& what) {
  ++(fine ? count().passed : count().failed);
  if (!fine) std::fprintf(stderr, "failed: %s\n", what.c_str());
}

inline std::mt19937& random_bits() {
  static std::mt19937 bits(20261122);
  return bits;
}

// A float array that begins 4 bytes after an aligned address and ends with its allocation, where sanitizers watch.
class Floats {
 public:
  explicit Floats(int64_t size, float value = 0) : all_(static_cast<size_t>(size) + 1, value) {}
  static Floats normal(int64_t size, float deviation = 1) {
    Floats floats(size);
    std::normal_distribution<float> distribution(0, deviation);
    for (int64_t i = 0; i < size; ++i) floats[i] = distribution(random_bits());
    return floats;
  }
  static Floats uniform(int64_t size, float low, float high) {
    Floats floats(size);
    std::uniform_real_distribution<float> distribution(low, high);
    for (int64_t i = 0; i < size; ++i) floats[i] = distribution(random_bits());
    return floats;
  }
  float* data() { return all_.data() + 1; }
  int64_t size() const { return static_cast<int64_t>(all_.size()) - 1; }
  float& operator[](int64_t i) { return all_[static_cast<size_t>(i) + 1]; }
  // Bit for bit.
  bool operator==(const Floats& other) const {
    return all_.size() == other.all_.size() &&
           std::memcmp(all_.data() + 1, other.all_.data() + 1, 4 * all_.size() - 4) == 0;
  }

 private:
  std::vector<float> all_;
};

// The same values in another type.
inline std::vector<uint8_t> as_type(Floats& values, Type type) {
  std::vector<uint8_t> bytes(static_cast<size_t>(values.size()) * size_of(type));
  for (int64_t i = 0; i < values.size(); ++i) {
    const uint16_t half = type == Type::kFloat16 ? reference::to_half(values[i]) : reference::to_bfloat16(values[i]);
    const void* from = type == Type::kFloat32 ? static_cast<const void*>(&values[i]) : &half;
    std::memcpy(bytes.data() + static_cast<size_t>(i) * size_of(type), from, size_of(type));
  }
  return bytes;
}

// The other way round.
inline reference::Doubles loaded(const std::vector<uint8_t>& bytes, Type type) {
  reference::Doubles values;
  const int64_t size = static_cast<int64_t>(bytes.size() / size_of(type));
  for (int64_t i = 0; i < size; ++i) values.push_back(reference::load(bytes.data(), type, i));
  return values;
}

// Whether found is expected within `tolerance` of the largest magnitude, or of 1.
inline void check_close(const reference::Doubles& found, const reference::Doubles& expected, double tolerance,
                        const std::string& what) {
  double largest = 1, error = found.size() == expected.size() ? 0 : INFINITY;
  for (const double value : expected) largest = std::max(largest, std::fabs(value));
  for (size_t i = 0; i < expected.size() && error < INFINITY; ++i) {
    const double difference = std::fabs(found[i] - expected[i]);
    error = std::isnan(difference) ? INFINITY : std::max(error, difference);
  }
  check(error <= tolerance * largest, what + ": error " + std::to_string(error) + " of " + std::to_string(largest));
}

inline void check_close(Floats& found, const reference::Doubles& expected, double tolerance, const std::string& what) {
  check_close(reference::Doubles(found.data(), found.data() + found.size()), expected, tolerance, what);
}

// Tasks one after the other from the last to the first, and on as many threads as there are tasks: what they compute is
// compared with that of tasks in order.
inline void run_backwards(void*, Parallel::Task task, size_t tasks, void* argument) {
  while (tasks > 0) task(argument, --tasks);
}
inline void run_at_once(void*, Parallel::Task task, size_t tasks, void* argument) {
  std::vector<std::thread> threads;
  for (size_t i = 0; i < tasks; ++i) {
    if (threads.size() == 8) {
      for (std::thread& thread : threads) thread.join();
      threads.clear();
    }
    threads.emplace_back(task, argument, i);
  }
  for (std::thread& thread : threads) thread.join();
}
inline std::vector<Parallel> ways_of_running() {
  return {Parallel(nullptr, run_backwards), Parallel(nullptr, run_at_once)};
}

inline std::string text(std::initializer_list<int64_t> numbers) {
  std::string all;
  for (const int64_t number : numbers) all += " " + std::to_string(number);
  return all;
}

// The test groups; each runs with the kernels of one instruction set, the last with none.
void test_products(const Kernels& kernels);
void test_mamba2_mixer(const Kernels& kernels);
void test_cached_attention(const Kernels& kernels);
void test_packed_store();

}  // namespace edge::test
