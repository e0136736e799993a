// Nearest codeword of a sorted one-dimensional codebook.
#pragma once
#include "isa.h"

// The contract, for every device: codes[i] = #{j : mids[j] < x[i]}, where mids holds the k-1 midpoints of k ascending
// codewords, rounded down to float, 1 <= k <= 256. That is the codeword nearest to x[i] in exact arithmetic, the lower
// one in a tie. NaN takes 0. codes may not overlap x. O(n k) up to 16 codewords, O(n log k) or better above; exact, so
// the same on every device and instruction set.

/// One range, on one thread.
LC_PER_ISA(void assign_range(const float* x, int64_t n, const float* mids, int k, uint8_t* codes);)

/// x[i] = codebook[codes[i]]; every code is below the number k of codewords.
LC_PER_ISA(void decode_range(const uint8_t* codes, int64_t n, const float* codebook, int k, float* x);)

namespace lc::cpu {
/// All threads.
void assign(const float* x, int64_t n, const float* mids, int k, uint8_t* codes);
void decode(const uint8_t* codes, int64_t n, const float* codebook, int k, float* x);

/// mids[0..k-2] of an ascending codebook: the largest floats that do not exceed the exact midpoints.
void midpoints(const float* codebook, int k, float* mids);
} // namespace lc::cpu

namespace lc::cuda {
/// On device memory. Enqueues on `stream` and does not synchronise.
void assign(const float* x, int64_t n, const float* mids, int k, uint8_t* codes, void* stream);
} // namespace lc::cuda
