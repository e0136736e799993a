#include "../codebook_plus_sparse.h"

#include "nearest.h"

namespace lc::LC_ISA {
namespace {

// h (x - q)^2; lanes past the end of h weigh nothing.
LC_INLINE V8D score_of(V8F v, V8F q, const float* h, int64_t left, V8I* bad) {
  const V8D d = widen(v) - widen(q);
  if (!h) return d * d;
  V8F weight{};
  __builtin_memcpy(&weight, h, size_t(left) * 4);
  *bad |= not_finite(weight) | (weight < splat8(0.0f));
  return widen(weight) * (d * d);
}

} // namespace

CorrectionCounts correction_pass(const float* x, const float* h, int64_t n, const float* mids, const float* codebook,
                                 int k, double low, uint8_t* codes, uint16_t* listed) {
  CorrectionCounts counts;
  V8D rest{};
  V8I bad{}, unweighable{};
  for_each_nearest(x, n, mids, codebook, k, codes, [&](int64_t i, int64_t left, V8F v, V8F q, const uint8_t*) {
    const V8D score = score_of(v, q, h ? h + i : nullptr, left, &unweighable);
    bad |= not_finite(v);
    const V8L high = score >= V8D{} + low;
    rest += high ? V8D{} : score;
    for (uint32_t lanes = lane_bits8(high) & ((1u << left) - 1); lanes; lanes &= lanes - 1)
      listed[counts.listed++] = uint16_t(i + __builtin_ctz(lanes));
  });
  counts.rest = sum8(rest);
  counts.finite = !any8(bad);
  counts.weighable = !any8(unweighable);
  return counts;
}

void correction_scores(const float* x, const float* h, int64_t n, const float* mids, const float* codebook, int k,
                       double* scores) {
  V8I unused{};
  for_each_nearest(x, n, mids, codebook, k, nullptr, [&](int64_t i, int64_t left, V8F v, V8F q, const uint8_t*) {
    const V8D score = score_of(v, q, h ? h + i : nullptr, left, &unused);
    __builtin_memcpy(scores + i, &score, size_t(left) * 8);
  });
}

} // namespace lc::LC_ISA
