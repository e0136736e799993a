// An adaptive codebook and kappa corrections.
#pragma once
#include "codebook_plus_sparse.h"

namespace lc::cpu {

/// How the codebook and the corrections take turns.
enum class Turns : int {
  trimmed = 0,  // corrected values take no part in the codebook: trimmed k-means
  alternate = 1 // k-means of what the corrections leave: a corrected value stays at the codeword it was corrected from
};

struct KmeansPlusSparseOptions {
  int k;         // 1 to 256
  int64_t kappa; // 0 to the number of values
  Turns turns;
  bool warm;    // start from the codebook given
  int max_iter; // bound on the turns
  double tol;   // they end when one lowers the distortion by less than this part of it
};

/// Minimises the sum of (x - codebook[code])^2 over all but kappa values, by turns on a histogram: choose the codebook,
/// choose what is corrected, until `tol`. Then the exact corrections for the codebook reached, as codebook_plus_sparse
/// writes them; codebook has k ascending values. A warm start never ends above the distortion it started
/// from, and stays as it is where the histogram promises less than 1e-5 of the distortion.
///
/// A turn costs O(k) look-ups, so the data are read twice, three times if warm. The same for any number of threads and
/// instruction set.
ListStatus kmeans_plus_sparse(const std::vector<const float*>& x, const std::vector<int64_t>& n,
                              const KmeansPlusSparseOptions& options, const std::vector<uint8_t*>& codes,
                              float* codebook, int64_t* indices, float* values, double* distortion,
                              int64_t* iterations);

} // namespace lc::cpu
