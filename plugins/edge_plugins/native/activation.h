// What may stand between two matrix products.
#pragma once

namespace edge {

// kNone passes a product on as it is. kSiluGated takes twice as many columns as it gives: SiLU(first half) * second.
enum class Activation { kNone, kRelu2, kGelu, kSiluGated };

}  // namespace edge
