// Keys and outputs of the pruning kernels, as vectors. Included only by csrc/cpu/*.cc.
#pragma once
#include "../prune.h"
#include "simd.h"

namespace lc::LC_ISA {

constexpr int kWord = 32;                 // entries of a word of mask bits
constexpr int kVectors = kWord / kLanes;  // vectors of a word
constexpr int32_t kInfinity = 0x7f800000; // keys from here on are not finite

// The keys of x[at], ..., `left` of them; true lanes of `bad` where the score or x is not valid.
template <Score kScore> LC_INLINE VI keys_at(const PruneRange& range, int64_t at, int64_t left, VI raw, VI& bad) {
  const VI inf = splat(kInfinity), magnitude = raw & int32_t(kMagnitude);
  if constexpr (kScore == Score::magnitude) {
    bad |= ~(inf > magnitude);
    return magnitude;
  } else {
    const VF given = left >= kLanes ? load<VF>(range.score + at) : load<VF>(range.score + at, left);
    const VF score = kScore == Score::weighted ? given * as_float(magnitude) * as_float(magnitude) : given;
    const VI key = bits(score) & int32_t(kMagnitude);
    bad |= ~(inf > key) | (given < VF{});
    if constexpr (kScore == Score::given) bad |= ~(inf > magnitude);
    return key;
  }
}

// The word of mask bits of 32 entries.
LC_INLINE uint32_t word_of(const VI (&mask)[kVectors]) {
  uint32_t word = 0;
  for (int v = 0; v < kVectors; ++v) word |= lane_bits(mask[v]) << (v * kLanes);
  return word;
}

LC_INLINE VI first_lanes(int64_t n) {
  VI lane;
  for (int l = 0; l < kLanes; ++l) lane[l] = l;
  return lane < splat(int32_t(n < kLanes ? n : kLanes));
}

} // namespace lc::LC_ISA
