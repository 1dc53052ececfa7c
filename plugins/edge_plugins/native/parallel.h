// Independent tasks on somebody else's threads: ONNX Runtime's pool, or the caller's own thread.
#pragma once

#include <cstddef>

namespace edge {

// How many tasks there are depends on shapes only, so that results do not depend on the number of threads.
class Parallel {
 public:
  using Task = void (*)(void* argument, size_t index);
  using Run = void (*)(void* pool, Task task, size_t count, void* argument);

  Parallel() = default;  // the calling thread alone
  Parallel(void* pool, Run run) : pool_(pool), run_(run) {}

  // Calls f(index) for 0 <= index < count, in any order, and returns when all are done.
  template <class F>
  void operator()(size_t count, const F& f) const {
    if (run_ == nullptr || count < 2) {
      for (size_t index = 0; index < count; ++index) f(index);
      return;
    }
    run_(
        pool_, [](void* g, size_t index) { (*static_cast<const F*>(g))(index); }, count, const_cast<F*>(&f));
  }

 private:
  void* pool_ = nullptr;
  Run run_ = nullptr;
};

}  // namespace edge
