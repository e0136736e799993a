// Scalar k-means: the codebook of k values that minimises sum_i h_i (x_i - nearest codeword)^2.
#pragma once
#include "isa.h"

namespace lc {

/// A monotone map from floats to bins that is linear within `base` of `center` and logarithmic beyond: the bits of
/// |x - center| + base, less those of base, shifted; complemented below the center. Outliers cost a few bins instead of
/// all the resolution, and no pass over the data is needed to find its range. base is a power of two, so no bin
/// straddles an exponent.
struct Kmeans1dGrid {
  float center, base;
  int shift;    // a bin has 2^shift keys
  int32_t half; // bins on either side of center; there are 2 * half
  int drop;     // low bits of a key that its sum leaves out
};

/// Status of a problem in a batch.
enum class Kmeans1dStatus : int { ok = 0, not_finite = 1, bad_weights = 2 };

/// How far a problem is solved; see kmeans1d below.
enum class Kmeans1dMethod : int { automatic = 0, lloyd = 1, optimal = 2 };

/// What the label pass needs to know of an ascending codebook. Codewords and midpoints past the last are padded with
/// the last codeword and +inf.
struct Kmeans1dLabels {
  struct Entry {             // of a bin that holds at most one boundary, the midpoint `mid`
    float mid, below, above; // the codewords on either side of it
    uint32_t codes;          // of `below`, and from bit 16 on of `above`
  };
  int k;
  bool exact; // the distortion: in double, rather than with differences and their squares rounded to float
  float codebook[256], mids[256];
  Kmeans1dGrid grid;    // of the entries, for k > 16
  const Entry* entries; // for each bin; or null: binary search
};

namespace cpu {

/// A piece of a problem's data: n values, and where their codes go.
struct Kmeans1dPart {
  const float* x;
  const float* h; // n weights >= 0 and finite; or null: all one
  int64_t n;      // >= 0
  void* codes;    // out: n bytes; or rows of `cols` codes, each row a stream of bits in whole 32-bit words
  int64_t cols;
};

struct Kmeans1dProblem {
  const Kmeans1dPart* parts; // together at least one value, and not all weights zero
  int64_t part_count;
  float* codebook;                // k ascending values; in: the starting point if `warm`; out: the solution
  double* distortion;             // out: sum_i h_i (x_i - codebook[codes[i]])^2
  int64_t* iterations;            // out: Lloyd iterations
  double* excess_bound = nullptr; // out, unless null: at least the distortion over the global optimum's, less 1
};

struct Kmeans1dOptions {
  int k; // 1 to 256
  bool warm;
  Kmeans1dMethod method;
  int max_iter;
  double tol;          // stop when an iteration lowers the distortion by less than this part of it
  const float* pinned; // ascending codewords that do not move; a start has them too
  int pinned_count;    // <= k
  int bits;            // of packed codes, or 0: bytes
};

/// Solves a batch of independent problems. codes[i] is the codeword nearest to x[i], the lower one in a tie.
///
/// automatic: the optimal partition of a histogram, or `warm` (of the two the better for k > 32), accelerated Lloyd
///   iterations on the bins with a linear density in each, and the label pass. Up to 65536 values, and for data that
///   bins cannot resolve, the iterations end on the values themselves.
/// lloyd: exact Lloyd iterations on the values to the end, or max_iter.
/// optimal: the globally optimal partition of at most 4096 distinct values; above, of the bins, and then lloyd.
///
/// `optimal` knows how far from the global optimum it may be: with the mean of a bin fixed, its values can lower the
/// distortion of a codebook below that of the means only by so much. The other methods say infinity.
///
/// A warm start never ends above the distortion it started from. With fewer than k distinct values the distortion is
/// zero and the last codeword is repeated. The distortion is summed in double; of more than 65536 unweighted values
/// each difference and its square are rounded to float first (`automatic` only).
///
/// O(n + k m) each, with m at most 12288 bins (98304 in `optimal`); two passes over the data, and one for each time
/// that bins are opened. The results are the same for any number of threads and any instruction set.
void kmeans1d(const std::vector<Kmeans1dProblem>& batch, const Kmeans1dOptions& options,
              std::vector<Kmeans1dStatus>& status);
} // namespace cpu
} // namespace lc

/// table[bin(x)] += biased key of x, in one of two tables `stride` apart, of which `table` is the first. A biased key
/// is (key >> drop) + 3 * 2^30. Returns false if a value fell off the grid (NaN and Inf always do).
LC_PER_ISA(bool kmeans1d_histogram(const float* x, int64_t n, Kmeans1dGrid grid, uint64_t* table, int64_t stride);)

/// Takes the two tables apart and clears them: count[bin] += the number of keys, low[bin] += the sum of what their
/// biased keys exceed the least of the bin by. The sum of the latter in a table must be below 2^31.
LC_PER_ISA(void kmeans1d_flush(uint64_t* table, int64_t stride, Kmeans1dGrid grid, double* count, double* low);)

/// sums[2 bin(x)] += h, sums[2 bin(x) + 1] += h (x - center). Returns false if a value fell off the grid or a weight is
/// negative or not finite.
LC_PER_ISA(bool kmeans1d_histogram_weighted(const float* x, const float* h, int64_t n, Kmeans1dGrid grid,
                                            double* sums);)

/// at[0..] = the positions of those x whose bin is wanted, in order. All x are on the grid. Returns how many.
LC_PER_ISA(int64_t kmeans1d_gather(const float* x, int64_t n, Kmeans1dGrid grid, const uint8_t* wanted, uint32_t* at);)

/// Extremes of x, and whether all are finite.
struct Kmeans1dRange {
  float low, high;
  bool finite;
};
LC_PER_ISA(Kmeans1dRange kmeans1d_range(const float* x, int64_t n);)

/// rank[i] = the place of x[i] among x in stable ascending order. O(n^2).
LC_PER_ISA(void kmeans1d_rank(const float* x, int n, int32_t* rank);)

/// Optimal partition of m atoms, in order, into k cells, 1 <= k <= m. w[0..m], s[0..m] are prefix sums of weight and of
/// weight times value, w strictly rising. ends[c] = one past the last atom of cell c. scratch: 2 (m+1) doubles and
/// k (m+1) ints. O(k m log m). The lowest split in a tie.
LC_PER_ISA(void kmeans1d_partition(const double* w, const double* s, int m, int k, double* scratch, int* splits,
                                   int* ends);)

/// The same with a price `lambda` on each cell instead of their number. f[0..m], split[0..m] and cells[0..m] are
/// scratch; from split[m] on the splits lead to the first atom. Returns the number of cells. O(m times atoms in a
/// cell).
LC_PER_ISA(int kmeans1d_priced_partition(const double* w, const double* s, int m, double lambda, double* f, int* split,
                                         int* cells);)

/// codes[i] = the codeword nearest to x[i]. Returns sum_i h_i (x_i - codeword)^2; h may be null, else it is exact.
LC_PER_ISA(double kmeans1d_label(const float* x, const float* h, int64_t n, const Kmeans1dLabels& labels,
                                 uint8_t* codes);)

/// n codes below 2^bits as a stream of bits, the lowest first, in whole 32-bit words. 1 <= bits <= 8.
LC_PER_ISA(void kmeans1d_pack(const uint8_t* codes, int64_t n, int bits, int32_t* words);)
