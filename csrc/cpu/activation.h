// The functions of csrc/activation.h on vectors. Included only by csrc/cpu/*.cc; the rules are those of simd.h.
#pragma once
#include "../activation.h"

#include "simd.h"

namespace lc::LC_ISA {
namespace {

// exp(x) for x <= 0, within 2^-22; 0 for less than -104, which rounds to it. 2^n exp(r), |r| <= ln(2) / 2: the
// polynomial of Cephes (S. Moshier), the scale in two factors, for denormal results.
LC_INLINE VF exp_of_negative(VF x) {
  x = x < splat(-104.0f) ? splat(-104.0f) : x;
  const VF magic = splat(12582912.0f); // 1.5 * 2^23: adding it rounds to an integer
  const VF shifted = x * 1.44269504f + magic, n = shifted - magic;
  const VF r = x - n * 0.693359375f + n * 2.12194440e-4f;
  VF p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const VI k = bits(shifted) - bits(magic), half = k >> 1;
  return p * as_float((VI)((VU)(half + 127) << 23)) * as_float((VI)((VU)(k - half + 127) << 23));
}

// The probability of more than a >= 0 under the normal distribution, within 2^-20: exp(-a^2 / 2) times a polynomial in
// 1 / (1 + 0.4 a), of least relative error for a <= 14.6 (7e-9 of the 2^-24 that its evaluation adds 6 of).
LC_INLINE VF normal_tail(VF a) {
  a = a > splat(15.0f) ? splat(15.0f) : a;
  const VF t = 1.0f / (a * 0.4f + 1.0f);
  VF p = t * -0x1.40b414p-5f + 0x1.96d34cp-3f;
  p = p * t + -0x1.7b0470p-2f;
  p = p * t + 0x1.faca32p-3f;
  p = p * t + -0x1.51e434p-7f;
  p = p * t + 0x1.42eabcp-3f;
  p = p * t + 0x1.3f5f52p-3f;
  p = p * t + 0x1.47727ap-3f;
  p = p * t + -0x1.76139cp-17f;
  // exp(-a^2 / 2) by the rounded square, times 1 - rest / 2: rounding it costs 2^-17 of the result at a = 13. The
  // square of 12 bits is exact.
  const VF square = a * a, high = as_float(bits(a) & int32_t(0xfffff000)), low = a - high;
  const VF rest = (high * high - square) + 2.0f * high * low + low * low;
  return p * exp_of_negative(square * -0.5f) * (1.0f - 0.5f * rest);
}

// x / (1 + exp(-u)) for u of the sign of x.
LC_INLINE VF times_sigmoid(VF x, VF u) {
  const VF e = exp_of_negative(-abs(u));
  const VF below = x < splat(-200.0f) ? splat(-200.0f) : x; // the limit at -Inf, where e is 0
  return below * ((x < VF{} ? e : splat(1.0f)) / (1.0f + e));
}

LC_INLINE VF activated(lc::Activation f, VF x) {
  VF y = x;
  if (f == lc::Activation::relu) {
    y = x < VF{} ? VF{} : x;
  } else if (f == lc::Activation::gelu) {
    const VF tail = normal_tail(abs(x));
    y = x < VF{} ? max(x, splat(-15.0f)) * tail : x * (1.0f - tail);
  } else if (f == lc::Activation::gelu_tanh) {
    y = times_sigmoid(x, x * (x * x * 0.07135481627f + 1.59576912f));
  } else if (f == lc::Activation::silu) {
    y = times_sigmoid(x, x);
  }
  return x == x ? y : x; // which NaN an operation gives is the compiler's choice
}

// In place. One copy in each file: the layers have many epilogues.
__attribute__((noinline, unused)) static void activate(lc::Activation f, float* x, int64_t n) {
  if (f == lc::Activation::none) return;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(x + i, activated(f, load<VF>(x + i)));
  if (i < n) store(x + i, activated(f, load<VF>(x + i, n - i)), n - i);
}

} // namespace
} // namespace lc::LC_ISA
