// Stand-in: the slow reference.
#include "../../tests/reference.h"

namespace edge::EDGE_ISA {

void mamba2_mixer(const Mamba2MixerArgs& a, const Parallel&) {
  const auto result = reference::mamba2_mixer(a);
  const auto narrow = [](double v) { return static_cast<float>(v); };
  std::transform(result.y.begin(), result.y.end(), a.y, narrow);
  std::transform(result.conv.begin(), result.conv.end(), a.present_conv, narrow);
  for (size_t i = 0; i < result.ssm.size(); ++i) {
    const float value = narrow(result.ssm[i]);
    if (a.ssm_type == Type::kFloat32) {
      static_cast<float*>(a.present_ssm)[i] = value;
    } else if (a.ssm_type == Type::kFloat16) {
      static_cast<uint16_t*>(a.present_ssm)[i] = reference::to_half(value);
    } else {
      static_cast<uint16_t*>(a.present_ssm)[i] = reference::to_bfloat16(value);
    }
  }
}

}  // namespace edge::EDGE_ISA
