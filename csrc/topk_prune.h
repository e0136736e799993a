// Keep the kappa largest magnitudes of a list of tensors, zero the rest.
#pragma once
#include "isa.h"

namespace lc {

/// What one pass over a range saw. Keys are the bits of |x|, which order floats as their magnitudes do.
struct TopkCounts {
  int64_t kept = 0;   // keys >= mid
  int64_t listed = 0; // keys in [low, high], also those that did not fit
  bool finite = true; // no NaN, no Inf
};

namespace cpu {
/// The tensors are x[t] of n[t] floats; an index in the list is counted through them in order. Exactly `kappa` entries
/// survive, 0 <= kappa <= sum n; among equal magnitudes at the threshold the lowest indices do.
///
/// values[t] (survivors in place, zeros elsewhere) and mask[t] (one byte each) may be null; neither may overlap x[t].
/// *threshold is the smallest surviving magnitude, +inf if kappa is 0. Returns false, with the outputs undefined, if
/// there is a NaN or Inf. O(N): one pass over the data plus repairs in the common case. Extra memory N/2 bytes at most.
bool topk_prune(const std::vector<const float*>& x, const std::vector<int64_t>& n, int64_t kappa,
                const std::vector<float*>& values, const std::vector<uint8_t*>& mask, float* threshold);
} // namespace cpu
} // namespace lc

/// Writes values and mask for "key >= mid" and lists the bits and the position of every x with low <= key <= high, up
/// to `capacity` of them, in order.
LC_PER_ISA(TopkCounts topk_pass(const float* x, int64_t n, uint32_t low, uint32_t mid, uint32_t high, float* values,
                                uint8_t* mask, uint32_t* listed_bits, uint32_t* listed_at, int64_t capacity);)

/// histogram[(key >> shift) & (bins - 1)] += 1 for every x with key >> prefix_shift == prefix; bins is a power of two.
LC_PER_ISA(void topk_histogram(const float* x, int64_t n, int prefix_shift, uint32_t prefix, int shift, uint32_t bins,
                               uint32_t* histogram);)
