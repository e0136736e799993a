// At most kappa nonzeros that share k codewords: support and codebook chosen together.
#pragma once
#include "codebook_plus_sparse.h"

namespace lc {

/// What one pass over a range saw.
struct SupportCounts {
  int64_t listed = 0;    // scores in [low, high]
  int64_t above = 0;     // scores above high
  double rest = 0;       // distortion of what is not listed, in a fixed order
  bool finite = true;    // no NaN, no Inf in x
  bool weighable = true; // weights are finite and not negative
};

namespace cpu {

/// The exact solution for a given codebook of k nonzero codewords, ascending, 1 to 255: the kappa entries with the
/// largest positive benefit h (x^2 - (x - c)^2), c the codeword nearest to x and the lower one in a tie, are in the
/// support, the lowest indices in a tie. codes: 0 for zero, else 1 + the index of c. *distortion is the sum of
/// h (x - codeword)^2, *used the size of the support: fewer than kappa where fewer have a benefit.
ListStatus nearest_sparse(const std::vector<const float*>& x, const std::vector<const float*>& h,
                          const std::vector<int64_t>& n, const float* codebook, int k, int64_t kappa,
                          const std::vector<uint8_t*>& codes, double* distortion, int64_t* used);

/// The codebook too. Cold start: the optimum on a histogram, by dynamic programming; `warm`: the codebook given. Then
/// Lloyd steps under the constraint on the count, on the histogram, and the exact solution for the codebook reached.
/// Never above the warm start, nor above the histogram's optimum; a warm start stays as it is where the histogram
/// promises less than 1e-5 of the distortion. With fewer than k codewords in use the last is
/// repeated. Two passes over the data, three if warm.
ListStatus sparse_codebook(const std::vector<const float*>& x, const std::vector<int64_t>& n, int k, int64_t kappa,
                           bool warm, int max_iter, const std::vector<uint8_t*>& codes, float* codebook,
                           double* distortion, int64_t* used, int64_t* iterations);
} // namespace cpu
} // namespace lc

/// codes of a range: 0 where the benefit is below low, else 1 + the nearest codeword; listed[0..] and scores[0..] = the
/// positions and the values of benefits in [low, high], ascending. low > 0; n at most 65536; h may be null.
LC_PER_ISA(SupportCounts support_pass(const float* x, const float* h, int64_t n, const float* mids,
                                      const float* codebook, int k, double low, double high, uint8_t* codes,
                                      uint16_t* listed, double* scores);)

/// The benefits.
LC_PER_ISA(void support_scores(const float* x, const float* h, int64_t n, const float* mids, const float* codebook,
                               int k, double* scores);)
