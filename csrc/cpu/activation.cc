#include "activation.h"

namespace lc::LC_ISA {

void activation_range(lc::Activation f, const float* x, const float* bias, int64_t n, float* y) {
  apply(f, x, bias, n, y);
}

void activation_at(lc::Activation f, const int32_t* at, int64_t n, float* y) {
  for (int64_t i = 0; i < n; i += 16) {
    float v[16] = {};
    const int64_t left = n - i < 16 ? n - i : 16;
    for (int64_t l = 0; l < left; ++l)
      if (at[i + l] >= 0) v[l] = y[at[i + l]];
    activate(f, v, 16);
    for (int64_t l = 0; l < left; ++l)
      if (at[i + l] >= 0) y[at[i + l]] = v[l];
  }
}

} // namespace lc::LC_ISA
