// A fixed codebook times a free positive scale: the scale, and the codes, that minimise the distortion.
#pragma once
#include "isa.h"

namespace lc {

enum class QuantizeScaledStatus : int { ok = 0, not_finite = 1, bad_weights = 2 };

/// Bins of a histogram of x: the bits of |x| + base, less those of base, shifted: linear below base, logarithmic above.
/// Bin half + j holds x >= 0, bin half - 1 - j its mirror image. base is a power of two from 2^-126 to 2^100.
struct QuantizeScaledGrid {
  float base;
  int shift;
  int32_t half; // bins on either side of zero
};

namespace cpu {
struct QuantizeScaledPart {
  const float* x; // n values
  const float* h; // n weights >= 0 and finite, or null: all one
  int64_t n;
  uint8_t* codes; // out
};

/// Solves a batch of independent problems. Problem p is parts[ends[p - 1]] to parts[ends[p] - 1], which share a scale.
///
/// With the codebook s * levels, levels ascending, 1 <= k <= 256, finds the scale s > 0 that minimises
/// sum_i h_i (x_i - nearest codeword)^2. codes[i] is the codeword nearest to x[i] among the floats s * levels, the
/// lower one in a tie; *distortion is the sum for those floats. If no positive scale lowers the distortion below that
/// of s = 0 (all x or weights are zero, or no level has their sign), the scale is 0. If `fixed`, scales[p] is given.
///
/// The scale is globally optimal but for a relative excess of 1e-8 and rounding.
/// O(n log k) each. The same results for any number of threads and any instruction set.
void quantize_scaled(const std::vector<QuantizeScaledPart>& parts, const std::vector<int64_t>& ends,
                     const float* levels, int k, bool fixed, float* scales, double* distortions,
                     std::vector<QuantizeScaledStatus>& status);
} // namespace cpu

/// What a pass over values saw: extremes and sums that need no codebook.
struct QuantizeScaledStats {
  double energy; // sum h x^2
  float largest; // |x|
  bool finite;   // all x
  bool weights_good;
};
} // namespace lc

namespace lc {
/// What the kernels search: the level of x is levels[#{j : thresholds[j] < x}].
struct QuantizeScaledBook {
  const float*
      thresholds;      // k - 1 ascending, -infinity before them, and after them, up to 16 and at least one, infinity
  const float* levels; // k; with room to read 16
  int k;
  // For k > 16, where to start looking: first[min(max(int(x * factor + offset), 0), kQuantizeScaledCells - 1)].
  float factor, offset;
  const uint8_t* first; // below k; with room to read 3 more
  // Levels at equal distances: the code is min(max(int(x * per_step + from), 0), k - 1) but for rounding, and its level
  // is lowest + code * step. Else step is 0.
  float per_step, from, lowest, step;
};
constexpr int kQuantizeScaledCells = 2048;
constexpr int kQuantizeScaledRanges = 8;
} // namespace lc

// The kernels. h may be null throughout.

/// sums[0] = sum h x q, sums[1] = sum h q^2 with q the level of x; for levels at equal distances an x beside a
/// threshold may take that on its other side.
LC_PER_ISA(void quantize_scaled_sums(const float* x, const float* h, int64_t n, lc::QuantizeScaledBook book,
                                     double* sums);)

/// Codes, and sum h (x - q)^2.
LC_PER_ISA(double quantize_scaled_codes(const float* x, const float* h, int64_t n, lc::QuantizeScaledBook book,
                                        uint8_t* codes);)

/// Keeps, in order, the values whose level differs between two sets of thresholds, with both codes, and adds to sums
/// (as above) what the others contribute. Returns how many; the outputs have room for n. Levels at equal distances as
/// above.
LC_PER_ISA(int64_t quantize_scaled_filter(const float* x, const float* h, int64_t n, lc::QuantizeScaledBook a,
                                          lc::QuantizeScaledBook b, float* x_kept, float* h_kept, uint8_t* code_a,
                                          uint8_t* code_b, double* sums);)

LC_PER_ISA(lc::QuantizeScaledStats quantize_scaled_stats(const float* x, const float* h, int64_t n);)

/// table[bin] += (1 << 40) + the key's low bits. At most 2^20 values between flushes. False if a value is off the grid.
LC_PER_ISA(bool quantize_scaled_histogram(const float* x, int64_t n, lc::QuantizeScaledGrid grid, uint64_t* table);)

/// w[bin] += h, s[bin] += h |x|. False if a value is off the grid or a weight is negative or not finite.
LC_PER_ISA(bool quantize_scaled_histogram_weighted(const float* x, const float* h, int64_t n,
                                                   lc::QuantizeScaledGrid grid, double* w, double* s);)

/// Keeps, in order, the values of the bins whose distance from zero lies in one of `count` ranges [first, last], at
/// most kQuantizeScaledRanges. Returns how many; x_kept and h_kept have room for n.
LC_PER_ISA(int64_t quantize_scaled_gather_ranges(const float* x, const float* h, int64_t n, lc::QuantizeScaledGrid grid,
                                                 const int32_t* first, const int32_t* last, int count, float* x_kept,
                                                 float* h_kept);)

/// The same for the wanted ones of all bins.
LC_PER_ISA(int64_t quantize_scaled_gather(const float* x, const float* h, int64_t n, lc::QuantizeScaledGrid grid,
                                          const uint8_t* wanted, float* x_kept, float* h_kept);)
