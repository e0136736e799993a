// Keys and outputs of the pruning kernels, as vectors. Included only by csrc/cpu/*.cc.
#pragma once
#include "../prune.h"
#include "simd.h"

namespace lc::LC_ISA {

constexpr int kWord = 32;                // entries of a word of mask bits
constexpr int kVectors = kWord / kLanes; // vectors of a word

// The keys of x[at], ..., `left` of them. Makes lanes of `bad` negative where the score or x is not valid: adding 1 to
// the exponent of NaN or Inf carries into the sign.
template <Score kScore> LC_INLINE VI keys_at(const PruneRange& range, int64_t at, int64_t left, VI raw, VI& bad) {
  constexpr int32_t kCarry = 0x00800000;
  const VI magnitude = raw & int32_t(kMagnitude);
  if constexpr (kScore == Score::magnitude) {
    bad |= (VI)((VU)magnitude + kCarry);
    return magnitude;
  } else {
    const VF given = left >= kLanes ? load<VF>(range.score + at) : load<VF>(range.score + at, left);
    const VF score = kScore == Score::weighted ? given * as_float(magnitude) * as_float(magnitude) : given;
    const VI key = bits(score) & int32_t(kMagnitude);
    bad |= (VI)((VU)key + kCarry) | (given < VF{});
    if constexpr (kScore == Score::given) bad |= (VI)((VU)magnitude + kCarry);
    return key;
  }
}

LC_INLINE bool all_valid(VI bad) { return !any(bad < 0); }

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
