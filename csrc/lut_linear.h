// Linear layer with packed codes and a codebook.
#pragma once
#include "isa.h"

// The contract, for every device: row o of the weight is W[o, i] = codebook[code(o, i)], where code(o, i) is the
// `bits`-bit number at bit i * bits of the LSB-first bit stream words[o, 0 .. ceil(cols * bits / 32)), little-endian;
// 1 <= bits <= 8, 1 <= k <= 2^bits, and codes from k on mean 0. The codebook must be finite. Nothing outside the words
// is read, whatever they hold. y may not overlap an input.
//
// lut_linear: y[m, o] = sum_i x[m, i] W[o, i] + bias[o], for x of shape (batch, cols) and y of shape (batch, rows);
// bias may be null. Accumulated in float32 with an error of at most about cols * 2^-24 * sum_i |x[m, i] W[o, i]|. The
// same bits for any number of threads; the last bits depend on the instruction set. O(batch rows cols).
// lut_decode: weight[o, i] = W[o, i], exactly. O(rows cols).

/// Rows [begin, end), on one thread.
LC_PER_ISA(void lut_linear_range(const float* x, int64_t batch, const int32_t* words, int64_t rows, int64_t cols,
                                 int bits, const float* codebook, int k, const float* bias, int64_t begin, int64_t end,
                                 float* y);)
LC_PER_ISA(void lut_decode_range(const int32_t* words, int64_t cols, int bits, const float* codebook, int k,
                                 int64_t begin, int64_t end, float* weight);)

namespace lc::cpu {
/// All threads.
void lut_linear(const float* x, int64_t batch, const int32_t* words, int64_t rows, int64_t cols, int bits,
                const float* codebook, int k, const float* bias, float* y);
void lut_decode(const int32_t* words, int64_t rows, int64_t cols, int bits, const float* codebook, int k,
                float* weight);
} // namespace lc::cpu
