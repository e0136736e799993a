// The codebook {-c, c} and kappa corrections, exactly.
#pragma once
#include "codebook_plus_sparse.h"

namespace lc::cpu {

/// Minimises the sum of (|x| - c)^2 over c and over which kappa values are left out (corrected). What is kept is a
/// window of the sorted magnitudes, and c its mean. The histogram shows where the sum can have a minimum as the window
/// moves; only the bins there are sorted. codebook = {-c, c}, c rounded to float; the rest as codebook_plus_sparse
/// writes it. The same for any number of threads and instruction set.
ListStatus binary_plus_sparse(const std::vector<const float*>& x, const std::vector<int64_t>& n, int64_t kappa,
                              const std::vector<uint8_t*>& codes, float* codebook, int64_t* indices, float* values,
                              double* distortion);

} // namespace lc::cpu
