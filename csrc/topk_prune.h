// Keep the kappa entries of the largest score in a list of tensors, zero the rest.
#pragma once
#include "isa.h"
#include "prune.h"

namespace lc {

/// What one pass over a range saw.
struct TopkCounts {
  int64_t kept = 0;   // keys >= mid
  int64_t listed = 0; // keys in [low, high]
  bool valid = true;  // no NaN, Inf or negative score, and every x finite
};

constexpr int kTopkBounds = 6; // keys that one counting pass compares with

namespace cpu {
/// An index in the list is counted through its tensors in order. Exactly `kappa` entries survive, 0 <= kappa <= the
/// number of entries; among equal scores at the threshold the lowest indices do. The outputs may not overlap the
/// inputs.
///
/// *threshold is the smallest surviving score, +inf if kappa is 0. With `indices`, room for kappa of them, the
/// positions of the survivors within their tensor are written in order, tensor after tensor, and kept[t] is their
/// number in tensor t. Returns false, with the outputs undefined, if a score or an x is not valid. O(N): one pass over
/// the data plus repairs in the common case. Extra memory, kept for the next call of the thread: at most N/4 bytes for
/// each thread that works, and N/8 if indices come without bits.
bool topk_prune(const std::vector<PruneRange>& tensors, Score score, int64_t kappa, float* threshold, int64_t* indices,
                int64_t* kept);

/// Entries with a score above `bound` survive. Returns their number, or -1 if a score or an x is not valid.
int64_t threshold_prune(const std::vector<PruneRange>& tensors, Score score, float bound);
} // namespace cpu
} // namespace lc

/// Writes the result for "key >= mid", and lists the position of every entry with low <= key <= high, in order: none if
/// high = low - 1, and then the list may be null; else it has room for n + 2. `stream` writes the values past the
/// caches.
LC_PER_ISA(TopkCounts topk_pass(const PruneRange& range, Score score, uint32_t low, uint32_t mid, uint32_t high,
                                bool stream, uint32_t* listed);)

/// counts[j] = #{keys >= bounds[j]}, n < 2^31.
LC_PER_ISA(void topk_count(const PruneRange& range, Score score, const uint32_t* bounds, int64_t* counts);)

/// histogram[(key >> shift) & (bins - 1)] += 1 for every key with key >> prefix_shift == prefix; bins is a power of
/// two.
LC_PER_ISA(void topk_histogram(const PruneRange& range, Score score, int prefix_shift, uint32_t prefix, int shift,
                               uint32_t bins, uint32_t* histogram);)

/// indices = the positions of the set bits, `begin` added; there are `kept`.
LC_PER_ISA(void topk_indices(const uint32_t* bits, int64_t words, int64_t begin, int64_t* indices, int64_t kept);)
