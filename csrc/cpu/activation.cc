#include "activation.h"

namespace lc::LC_ISA {

void activation_range(lc::Activation f, const float* x, const float* bias, int64_t n, float* y) {
  apply(f, x, bias, n, y);
}

} // namespace lc::LC_ISA
