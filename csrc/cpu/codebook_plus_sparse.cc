#include "../codebook_plus_sparse.h"

#include "nearest.h"

namespace lc::LC_ISA {
namespace {

// h (x - q)^2; lanes past the end of h weigh nothing.
LC_INLINE D8 score_of(V8F v, V8F q, const float* h, int64_t left, V8I* bad) {
  const D8 d = widen(v) - widen(q);
  if (!h) return d * d;
  V8F weight{};
  __builtin_memcpy(&weight, h, size_t(left) * 4);
  *bad |= not_finite(weight) | (weight < splat8(0.0f));
  return widen(weight) * (d * d);
}

} // namespace

CorrectionCounts correction_pass(const float* x, const float* h, int64_t n, const float* mids, const float* codebook,
                                 int k, double low, double high, uint8_t* codes, uint16_t* sure, uint16_t* listed,
                                 double* scores) {
  CorrectionCounts counts;
  const D8 floor = splat_d8(low);
  D8 rest = splat_d8(0);
  V8I bad{}, unweighable{};
  for_each_nearest(x, n, mids, codebook, k,
                   [&](int64_t i, int64_t left, V8F v, V8F q, uint64_t code) __attribute__((always_inline)) {
                     if (codes) __builtin_memcpy(codes + i, &code, size_t(left));
                     const D8 score = score_of(v, q, h ? h + i : nullptr, left, &unweighable);
                     bad |= not_finite(v);
                     const L8 in = score >= floor;
                     rest = rest + where(~in, score);
                     uint32_t lanes = lane_bits8(in) & ((1u << left) - 1);
                     if (!lanes) return;
                     double s[8];
                     __builtin_memcpy(s, &score, sizeof s);
                     for (; lanes; lanes &= lanes - 1) {
                       const int l = __builtin_ctz(lanes);
                       sure[counts.sure] = listed[counts.listed] =
                           uint16_t(i + l); // branch-free: the next one overwrites it or not
                       scores[counts.listed] = s[l];
                       const bool over = s[l] > high;
                       counts.sure += over, counts.listed += !over;
                     }
                   });
  counts.rest = sum8(rest);
  counts.finite = !any8(bad);
  counts.weighable = !any8(unweighable);
  return counts;
}

void correction_scores(const float* x, const float* h, int64_t n, const float* mids, const float* codebook, int k,
                       double* scores) {
  V8I unused{};
  for_each_nearest(x, n, mids, codebook, k,
                   [&](int64_t i, int64_t left, V8F v, V8F q, uint64_t) __attribute__((always_inline)) {
                     const D8 score = score_of(v, q, h ? h + i : nullptr, left, &unused);
                     __builtin_memcpy(scores + i, &score, size_t(left) * 8);
                   });
}

} // namespace lc::LC_ISA
