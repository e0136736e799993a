// The distortion of a tensor at each pair of (codewords, nonzeros).
#pragma once
#include "isa.h"

namespace lc {

/// A monotone map from floats to bins that is linear within `base` of `center` and logarithmic beyond: the bits of
/// |x - center| + base, less those of base, shifted. base is a power of two. There are 2 * half bins; bins half + j and
/// half - 1 - j lie at the same distance on either side of the center.
struct ValueGrid {
  float center, base;
  int shift;
  int32_t half;
};

namespace cpu {
/// distortions[b][j] for nonzeros[j] values that share codewords[b] codewords, both ascending: each is that of a
/// solution on a grid of a few thousand bins, so an upper bound of the least. Returns false if there is a NaN or Inf.
/// One pass over the data. The same for any number of threads and instruction set.
bool rate_distortion(const std::vector<const float*>& x, const std::vector<int64_t>& n,
                     const std::vector<int>& codewords, const std::vector<int64_t>& nonzeros, double* distortions);

} // namespace cpu
} // namespace lc

/// table[bin(x)] += (1 << 40) + the low bits of the key of x: a count and an exact sum in one addition. *squares = sum
/// of (x - center)^2. At most 2^23 values between flushes. Returns false if a value is off the grid (NaN and Inf
/// always).
LC_PER_ISA(bool value_histogram(const float* x, int64_t n, lc::ValueGrid grid, uint64_t* table, double* squares);)

/// For j = 1..k and i = 0..m, gain[j * (m + 1) + i] = the largest sum of s^2 / w over a partition of the first i atoms
/// into at most j cells, and last[...] = what atom i contributes to it with the mean c of its cell, c (2 s_i - c w_i).
/// w and s are prefix sums, w strictly rising. gain and last have (k + 1) * (m + 1) items; row 0 is zero. O(k m log m).
LC_PER_ISA(void partition_gains(const double* w, const double* s, int m, int k, double* gain, double* last);)
