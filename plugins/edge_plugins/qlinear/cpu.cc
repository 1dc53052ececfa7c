// edge::QLinear on the CPU.
#include "../native/packed_product.h"
#include "kernel.h"

namespace edge::EDGE_ISA {

void qlinear(const QLinearArgs& args, const Parallel& parallel) {
  if (args.tokens == 0) return;
  const PackedMatrix& w = *args.weight;
  Frame frame;
  const RowsBuffer buffer(frame, w, rounding_for(w, args.exact, args.tokens), args.tokens);
  if (buffer.rounds()) {
    constexpr int64_t rows = 16;
    parallel(static_cast<size_t>((args.tokens + rows - 1) / rows), [&](size_t task) {
      const int64_t first = static_cast<int64_t>(task) * rows;
      for (int64_t t = first; t < std::min(first + rows, args.tokens); ++t) buffer.fill(t, args.x + (t * w.in));
    });
  }
  const Rows x = buffer.rows(args.x);
  const int64_t step = panels_per_task(w);
  parallel(static_cast<size_t>((w.panels() + step - 1) / step), [&](size_t task) {
    const int64_t first = static_cast<int64_t>(task) * step;
    for (int64_t panel = first; panel < std::min(first + step, w.panels()); ++panel) {
      panel_product(w, panel, x, args.tokens, args.y, w.out);
    }
  });
}

}  // namespace edge::EDGE_ISA
