// A fixed codebook and kappa corrections: every value to its nearest codeword, the kappa largest errors corrected.
#pragma once
#include "isa.h"

namespace lc {

/// Why a list of values was refused.
enum class ListStatus : int { ok = 0, not_finite = 1, bad_weights = 2 };

/// What one pass over a range saw.
struct CorrectionCounts {
  int64_t sure = 0;      // scores above high
  int64_t listed = 0;    // scores in [low, high]
  double rest = 0;       // sum of the scores below low, in a fixed order
  bool finite = true;    // no NaN, no Inf in x
  bool weighable = true; // weights are finite and not negative
};

namespace cpu {
/// What a pass over a piece found of its values and weights.
template <class Counts> ListStatus status_of(const Counts& counts) {
  return !counts.finite ? ListStatus::not_finite : !counts.weighable ? ListStatus::bad_weights : ListStatus::ok;
}

/// The first status that is not ok.
template <class Listed> ListStatus first_failure(const std::vector<Listed>& lists) {
  for (const Listed& list : lists)
    if (list.status != ListStatus::ok) return list.status;
  return ListStatus::ok;
}

/// The tensors are x[t] of n[t] floats, with weights h[t] (or h empty: all one); an index is counted through them in
/// order. codes[t][i] is the codeword nearest to x[t][i], the lower one in a tie; k ascending codewords, 1 to 256. The
/// kappa entries with the largest h (x - q)^2, computed in double, are corrected, the lowest indices in a tie:
/// indices[0..kappa) ascending, values[0..kappa) = x - q. *distortion is the sum of h (x - q)^2 over the others.
///
/// That is the exact minimum over all corrections (Idelbayev and Carreira-Perpinan 2021, theorem 4.1). codes, or any
/// codes[t], indices and values may be null. O(N k) for k <= 16, then O(N log k); one pass over the data and one over
/// about the kappa entries. The same for any number of threads and instruction set.
ListStatus codebook_plus_sparse(const std::vector<const float*>& x, const std::vector<const float*>& h,
                                const std::vector<int64_t>& n, const float* codebook, int k, int64_t kappa,
                                const std::vector<uint8_t*>& codes, int64_t* indices, float* values,
                                double* distortion);
} // namespace cpu
} // namespace lc

/// Codes of a range; sure[0..] = the positions of scores above high, listed[0..] and scores[0..] = those in [low,
/// high], ascending. sure, listed and scores have room for n items, n at most 65536. h and codes may be null.
LC_PER_ISA(CorrectionCounts correction_pass(const float* x, const float* h, int64_t n, const float* mids,
                                            const float* codebook, int k, double low, double high, uint8_t* codes,
                                            uint16_t* sure, uint16_t* listed, double* scores);)

/// scores[i] = h_i (x_i - q_i)^2.
LC_PER_ISA(void correction_scores(const float* x, const float* h, int64_t n, const float* mids, const float* codebook,
                                  int k, double* scores);)
