#include "../sparse_codebook.h"

#include "nearest.h"

namespace lc::LC_ISA {
namespace {

LC_INLINE D8 weights_of(const float* h, int64_t left, V8I* bad) {
  V8F weight{}; // lanes past the end weigh nothing
  __builtin_memcpy(&weight, h, size_t(left) * 4);
  *bad |= not_finite(weight) | (weight < splat8(0.0f));
  return widen(weight);
}

// x^2 - (x - q)^2, without the cancellation.
LC_INLINE D8 benefit(D8 v, D8 q) { return q * (v + v - q); }

} // namespace

SupportCounts support_pass(const float* x, const float* h, int64_t n, const float* mids, const float* codebook, int k,
                           double low, double high, uint8_t* codes, uint16_t* listed, double* scores) {
  SupportCounts counts;
  const D8 floor = splat_d8(low), ceiling = splat_d8(high);
  D8 rest = splat_d8(0);
  V8I bad{}, unweighable{};
  for_each_nearest(x, n, mids, codebook, k,
                   [&](int64_t i, int64_t left, V8F v, V8F q, uint64_t code) __attribute__((always_inline)) {
                     const D8 wide = widen(v), level = widen(q);
                     D8 score = benefit(wide, level), weight = splat_d8(1);
                     if (h) {
                       weight = weights_of(h + i, left, &unweighable);
                       score = weight * score;
                     }
                     bad |= not_finite(v);
                     const L8 in = score >= floor, over = score > ceiling;
                     const uint32_t present = (1u << left) - 1;
                     uint32_t lanes = lane_bits8(in) & present;
                     const uint32_t above = lane_bits8(over) & present;
                     const uint64_t kept =
                         (code + 0x0101010101010101u) & spread8(lanes); // a code is at most 254: no carry
                     __builtin_memcpy(codes + i, &kept, size_t(left));
                     counts.above += __builtin_popcount(above);
                     const D8 d = wide - where(over, level);
                     D8 cost = where(over | ~in, d * d);
                     if (h) cost = weight * cost;
                     if (left < 8) {
                       double c[8];
                       __builtin_memcpy(c, &cost, sizeof c);
                       for (int64_t l = left; l < 8; ++l) c[l] = 0;
                       __builtin_memcpy(&cost, c, sizeof c);
                     }
                     rest = rest + cost;
                     lanes &= ~above;
                     if (!lanes) return;
                     double s[8];
                     __builtin_memcpy(s, &score, sizeof s);
                     for (; lanes; lanes &= lanes - 1) {
                       const int l = __builtin_ctz(lanes);
                       listed[counts.listed] = uint16_t(i + l);
                       scores[counts.listed++] = s[l];
                     }
                   });
  counts.rest = sum8(rest);
  counts.finite = !any8(bad);
  counts.weighable = !any8(unweighable);
  return counts;
}

void support_scores(const float* x, const float* h, int64_t n, const float* mids, const float* codebook, int k,
                    double* scores) {
  V8I unused{};
  for_each_nearest(x, n, mids, codebook, k,
                   [&](int64_t i, int64_t left, V8F v, V8F q, uint64_t) __attribute__((always_inline)) {
                     D8 score = benefit(widen(v), widen(q));
                     if (h) score = weights_of(h + i, left, &unused) * score;
                     __builtin_memcpy(scores + i, &score, size_t(left) * 8);
                   });
}

} // namespace lc::LC_ISA
