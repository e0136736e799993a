#include "../sparse_codebook.h"

#include "nearest.h"

namespace lc::LC_ISA {
namespace {

LC_INLINE V8D weights_of(const float* h, int64_t left, V8I* bad) {
  if (!h) return V8D{} + 1;
  V8F weight{};
  __builtin_memcpy(&weight, h, size_t(left) * 4);
  *bad |= not_finite(weight) | (weight < splat8(0.0f));
  return widen(weight);
}

// x^2 - (x - q)^2, without the cancellation.
LC_INLINE V8D benefit(V8D v, V8D q) { return q * (2 * v - q); }

} // namespace

SupportCounts support_pass(const float* x, const float* h, int64_t n, const float* mids, const float* codebook, int k,
                           double low, double high, uint8_t* codes, uint16_t* listed) {
  SupportCounts counts;
  V8D rest{};
  V8L above{};
  V8I bad{}, unweighable{};
  const V8L lane{0, 1, 2, 3, 4, 5, 6, 7};
  for_each_nearest(x, n, mids, codebook, k, nullptr, [&](int64_t i, int64_t left, V8F v, V8F q, const uint8_t* code) {
    const V8D wide = widen(v), weight = weights_of(h ? h + i : nullptr, left, &unweighable);
    const V8D score = weight * benefit(wide, widen(q));
    bad |= not_finite(v);
    const V8L present = lane < V8L{} + left;
    const V8L in = (score >= V8D{} + low) & present, over = in & (score > V8D{} + high);
    const V8D d = wide - (over ? widen(q) : V8D{});
    const V8L list = in & ~over;
    rest += list | ~present ? V8D{} : weight * (d * d);
    above -= over;
    V8B plain;
    __builtin_memcpy(&plain, code, 8);
    const V8B kept = __builtin_convertvector(in, V8B) & (plain + 1);
    __builtin_memcpy(codes + i, &kept, size_t(left));
    for (uint32_t lanes = lane_bits8(list); lanes; lanes &= lanes - 1)
      listed[counts.listed++] = uint16_t(i + __builtin_ctz(lanes));
  });
  counts.rest = sum8(rest);
  for (int l = 0; l < 8; ++l) counts.above += above[l];
  counts.finite = !any8(bad);
  counts.weighable = !any8(unweighable);
  return counts;
}

void support_scores(const float* x, const float* h, int64_t n, const float* mids, const float* codebook, int k,
                    double* scores) {
  V8I unused{};
  for_each_nearest(x, n, mids, codebook, k, nullptr, [&](int64_t i, int64_t left, V8F v, V8F q, const uint8_t*) {
    const V8D score = weights_of(h ? h + i : nullptr, left, &unused) * benefit(widen(v), widen(q));
    __builtin_memcpy(scores + i, &score, size_t(left) * 8);
  });
}

} // namespace lc::LC_ISA
