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
  const VF shifted = fma_exact(x, splat(1.44269504f), magic), n = shifted - magic;
  const VF r = fma_exact(n, splat(2.12194440e-4f), fma_exact(n, splat(-0.693359375f), x));
  VF p = fma_exact(r, splat(1.9875691500e-4f), splat(1.3981999507e-3f));
  p = fma_exact(p, r, splat(8.3334519073e-3f));
  p = fma_exact(p, r, splat(4.1665795894e-2f));
  p = fma_exact(p, r, splat(1.6666665459e-1f));
  p = fma_exact(p, r, splat(5.0000001201e-1f));
  p = fma_exact(p, r * r, r) + 1.0f;
  const VI k = bits(shifted) - bits(magic), half = k >> 1;
  return p * as_float((VI)((VU)(half + 127) << 23)) * as_float((VI)((VU)(k - half + 127) << 23));
}

// The probability of more than a >= 0 under the normal distribution, within 2^-20: exp(-a^2 / 2) times a polynomial in
// 1 / (1 + 0.4 a), of least relative error for a <= 14.6 (a tenth of the 2^-24 that each of its steps may add).
LC_INLINE VF normal_tail(VF a) {
  a = a > splat(15.0f) ? splat(15.0f) : a;
  const VF t = 1.0f / fma_exact(a, splat(0.4f), splat(1.0f));
  VF p = fma_exact(t, splat(-0x1.40b414p-5f), splat(0x1.96d34cp-3f));
  p = fma_exact(p, t, splat(-0x1.7b0470p-2f));
  p = fma_exact(p, t, splat(0x1.faca32p-3f));
  p = fma_exact(p, t, splat(-0x1.51e434p-7f));
  p = fma_exact(p, t, splat(0x1.42eabcp-3f));
  p = fma_exact(p, t, splat(0x1.3f5f52p-3f));
  p = fma_exact(p, t, splat(0x1.47727ap-3f));
  p = fma_exact(p, t, splat(-0x1.76139cp-17f));
  // exp(-a^2 / 2) by the rounded square, times 1 - rest / 2: what rounding it costs is 2^-17 of the result at a = 13.
  const VF square = a * a, rest = fma_exact(a, a, -square);
  return fma_exact(p, rest * -0.5f, p) * exp_of_negative(square * -0.5f);
}

// x / (1 + exp(-u)) for u of the sign of x.
LC_INLINE VF times_sigmoid(VF x, VF u) {
  const VF e = exp_of_negative(-abs(u));
  const VF below = x < splat(-200.0f) ? splat(-200.0f) : x; // the limit at -Inf, where e is 0
  return below * (x < VF{} ? e : splat(1.0f)) / (1.0f + e);
}

template <lc::Activation F> LC_INLINE VF activated(VF x) {
  VF y = x;
  if constexpr (F == lc::Activation::relu) {
    y = x < VF{} ? VF{} : x;
  } else if constexpr (F == lc::Activation::gelu) {
    const VF tail = normal_tail(abs(x));
    y = x < VF{} ? max(x, splat(-15.0f)) * tail : x * (1.0f - tail);
  } else if constexpr (F == lc::Activation::gelu_tanh) {
    y = times_sigmoid(x, x * fma_exact(x * x, splat(0.07135481627f), splat(1.59576912f)));
  } else if constexpr (F == lc::Activation::silu) {
    y = times_sigmoid(x, x);
  }
  return x == x ? y : x; // which NaN an operation gives is the compiler's choice
}

template <lc::Activation F> void apply(const float* x, const float* bias, int64_t n, float* y) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const VF v = load<VF>(x + i);
    store(y + i, activated<F>(bias ? v + load<VF>(bias + i) : v));
  }
  if (i < n) {
    const VF v = load<VF>(x + i, n - i);
    store(y + i, activated<F>(bias ? v + load<VF>(bias + i, n - i) : v), n - i);
  }
}

// y = f(x + bias) for n elements. One copy in each file: the layers have many epilogues.
__attribute__((noinline, unused)) static void apply(lc::Activation f, const float* x, const float* bias, int64_t n,
                                                    float* y) {
  switch (f) {
  case lc::Activation::none:
    return apply<lc::Activation::none>(x, bias, n, y);
  case lc::Activation::relu:
    return apply<lc::Activation::relu>(x, bias, n, y);
  case lc::Activation::gelu:
    return apply<lc::Activation::gelu>(x, bias, n, y);
  case lc::Activation::gelu_tanh:
    return apply<lc::Activation::gelu_tanh>(x, bias, n, y);
  case lc::Activation::silu:
    return apply<lc::Activation::silu>(x, bias, n, y);
  }
}

LC_INLINE void activate(lc::Activation f, float* x, int64_t n) {
  if (f != lc::Activation::none) apply(f, x, nullptr, n, x);
}

} // namespace
} // namespace lc::LC_ISA
