// Scalar k-means: the codebook of k values that minimises sum_i h_i (x_i - nearest codeword)^2.
#pragma once
#include "isa.h"

namespace lc {

/// A monotone map from floats to bins that is linear within `base` of `center` and logarithmic beyond: the bits of
/// |x - center| + base, less those of base, shifted. Outliers cost a few bins instead of all the resolution, and no
/// pass over the data is needed to find its range. base is a power of two, so no bin straddles an exponent.
struct Kmeans1dGrid {
  float center, base;
  int shift;
  int32_t half; // bins on either side of center; there are 2 * half
};

/// Status of a problem in a batch.
enum class Kmeans1dStatus : int { ok = 0, not_finite = 1, bad_weights = 2 };

namespace cpu {
struct Kmeans1dProblem {
  const float* x;      // n values
  const float* h;      // n weights >= 0 and finite, not all zero; or null: all one
  int64_t n;           // >= 1
  uint8_t* codes;      // out: n codes, codes[i] indexes the codeword nearest to x[i], the lower one in a tie
  float* codebook;     // k ascending values; in: the starting point if `warm`; out: the solution
  double* distortion;  // out: sum_i h_i (x_i - codebook[codes[i]])^2
  int64_t* iterations; // out: Lloyd iterations
};

/// Solves a batch of independent problems with the same k, 1 <= k <= 256.
///
/// Cold start: the optimal partition of a histogram (of the distinct values themselves where there are at most 4096, so
/// that the result is then globally optimal), by dynamic programming. Warm start: the codebook given. Then exact Lloyd
/// iterations until nothing moves, or max_iter. A warm start never ends above the distortion it started from. With
/// fewer than k distinct values the distortion is zero and the last codeword is repeated.
///
/// O(n + K m) each, with m at most a few thousand bins; two passes over the data, and one more over the bins that hold
/// a boundary. The codebook and codes are the same for any number of threads and any instruction set.
void kmeans1d(const std::vector<Kmeans1dProblem>& batch, int k, bool warm, int max_iter,
              std::vector<Kmeans1dStatus>& status);
} // namespace cpu
} // namespace lc

/// table[bin(x)] += (1 << 40) + the low bits of the key of x: a count and an exact sum in one addition. At most 2^23
/// values between flushes. Returns false if a value fell off the grid (NaN and Inf always do).
LC_PER_ISA(bool kmeans1d_histogram(const float* x, int64_t n, Kmeans1dGrid grid, uint64_t* table);)

/// w[bin(x)] += h and s[bin(x)] += h (x - center). Returns false if a value fell off the grid.
LC_PER_ISA(bool kmeans1d_histogram_weighted(const float* x, const float* h, int64_t n, Kmeans1dGrid grid, double* w,
                                            double* s);)

/// at[0..] = the positions of those x whose bin is wanted, in order. All x are on the grid. Returns how many.
LC_PER_ISA(int64_t kmeans1d_gather(const float* x, int64_t n, Kmeans1dGrid grid, const uint8_t* wanted, uint32_t* at);)

/// Extremes of x, and whether all are finite.
struct Kmeans1dRange {
  float low, high;
  bool finite;
};
LC_PER_ISA(Kmeans1dRange kmeans1d_range(const float* x, int64_t n);)

/// Optimal partition of m atoms, in order, into k cells, 1 <= k <= m. w[0..m], s[0..m] are prefix sums of weight and of
/// weight times value, w strictly rising. ends[c] = one past the last atom of cell c. scratch: 2 (m+1) doubles and
/// k (m+1) ints. O(k m log m). The lowest split in a tie.
LC_PER_ISA(void kmeans1d_partition(const double* w, const double* s, int m, int k, double* scratch, int* splits,
                                   int* ends);)

/// sum_i h_i (x_i - codebook[codes[i]])^2; h may be null.
LC_PER_ISA(double kmeans1d_distortion(const float* x, const float* h, int64_t n, const uint8_t* codes,
                                      const float* codebook);)
