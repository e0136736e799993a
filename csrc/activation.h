// Activation functions: elementwise, and as the last step of the linear layers.
#pragma once
#include "isa.h"

// The contract: y = f(x + bias) for each element, where f is
//   none       x
//   relu       x, or 0 where x < 0
//   gelu       x Phi(x), with the distribution function of the normal distribution, 0.5 x (1 + erf(x / sqrt(2)))
//   gelu_tanh  0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
//   silu       x / (1 + exp(-x))
//
// Computed in float32 with operations that each round once, fused ones among them: the same bits for every
// instruction set and number of threads, and wherever an element lies. The error is at most 2^-20 of the result, for
// gelu_tanh 2^-20 + 2^-21 |u| of it, where u is what tanh is taken of, or at most 2^-142: denormal results have fewer
// bits. Zeros keep their sign, NaN stays NaN, and +-Inf have the limits of f: +Inf and, but for none, zero.
//
// y may be x; it may not overlap x otherwise, nor the bias, which may be null.
namespace lc {

enum class Activation : int { none, relu, gelu, gelu_tanh, silu };

} // namespace lc

/// n elements, with a bias for each, or null.
LC_PER_ISA(void activation_range(lc::Activation f, const float* x, const float* bias, int64_t n, float* y);)

namespace lc::cpu {
/// x and y of shape (batch, rows), a bias for each of the rows. All threads. O(batch rows).
void activation(Activation f, const float* x, const float* bias, int64_t batch, int64_t rows, float* y);
/// y[i, o] = f(y[i, o]) for i in [first, last) and o in [begin, end), on the calling thread: what it has just computed.
void activate(Activation f, int64_t rows, int64_t first, int64_t last, int64_t begin, int64_t end, float* y);
} // namespace lc::cpu
