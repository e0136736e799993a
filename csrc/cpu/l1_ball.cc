#include "../l1_ball.h"

#include "simd.h"

namespace lc::LC_ISA {
namespace {

// Float64 vectors of half as many lanes as a float vector has. Entry i goes to sum i % 16 on every instruction set, so
// that sums are the same on all.
constexpr int kHalf = kLanes > 1 ? kLanes / 2 : 1, kSums = 16, kParts = kSums / kHalf;
typedef float HF __attribute__((vector_size(4 * kHalf)));
typedef int32_t HI __attribute__((vector_size(4 * kHalf)));
typedef double HD __attribute__((vector_size(8 * kHalf)));
typedef int64_t HL __attribute__((vector_size(8 * kHalf)));

constexpr int32_t kInfinity = 0x7f800000, kMagnitudeBits = 0x7fffffff;

struct Entries {
  HI x;
  HD magnitude, inverse, shift; // |x|, 1 / h, t / h
};

template <bool kWeighted> LC_INLINE Entries entries_at(const float* x, const float* h, double t, HI& bad) {
  Entries e;
  e.x = load<HI>(x);
  const HI magnitude = e.x & kMagnitudeBits;
  bad |= magnitude >= kInfinity;
  e.magnitude = __builtin_convertvector((HF)magnitude, HD);
  if constexpr (kWeighted) {
    const HF weight = load<HF>(h), positive = (HF)((HI)weight & kMagnitudeBits); // of -0 too
    bad |= ((HI)positive >= kInfinity) | (weight < HF{});
    e.inverse = __builtin_convertvector(1.0f / positive, HD);
    e.shift = e.inverse * t;
  } else {
    e.shift = HD{} + t;
  }
  return e;
}

// Calls f(first, x, h, number) for blocks of 16; the last one in copies, whose unused entries are 0 with weight 1.
template <class F> LC_INLINE void for_blocks(const SoftRange& range, const F& f) {
  int64_t i = 0;
  for (; i + kSums <= range.n; i += kSums) f(i, range.x + i, range.h ? range.h + i : nullptr, kSums);
  if (i == range.n) return;
  float x[kSums] = {}, h[kSums];
  for (float& weight : h) weight = 1;
  for (int64_t l = 0; l < range.n - i; ++l) {
    x[l] = range.x[i + l];
    if (range.h) h[l] = range.h[i + l];
  }
  f(i, x, h, int(range.n - i));
}

LC_INLINE bool any_half(HI bad) {
  int32_t seen = 0;
  for (int l = 0; l < kHalf; ++l) seen |= bad[l];
  return seen != 0;
}

template <bool kWeighted> SoftSums sums(const SoftRange& range, double t) {
  HD magnitude[kParts] = {}, inverse[kParts] = {};
  HL count{};
  HI bad{};
  for_blocks(range, [&](int64_t, const float* x, const float* h, int many) {
    for (int p = 0; p < kParts; ++p) {
      const Entries e = entries_at<kWeighted>(x + p * kHalf, h + p * kHalf, t, bad);
      HL left = e.magnitude > e.shift;
      if (many < kSums)
        for (int l = 0; l < kHalf; ++l) left[l] = p * kHalf + l < many ? left[l] : 0;
      magnitude[p] += (HD)((HL)e.magnitude & left);
      if constexpr (kWeighted) inverse[p] += (HD)((HL)e.inverse & left);
      count -= left;
    }
  });
  SoftSums total;
  for (int p = 0; p < kParts; ++p)
    for (int l = 0; l < kHalf; ++l) total.magnitude += magnitude[p][l], total.inverse += inverse[p][l];
  for (int l = 0; l < kHalf; ++l) total.count += count[l];
  if constexpr (!kWeighted) total.inverse = double(total.count);
  total.valid = !any_half(bad);
  return total;
}

template <bool kWeighted, bool kStream> bool soft(const SoftRange& range, double t) {
  HI bad{};
  for_blocks(range, [&](int64_t i, const float* x, const float* h, int many) {
    HF value[kParts];
    for (int p = 0; p < kParts; ++p) {
      const Entries e = entries_at<kWeighted>(x + p * kHalf, h + p * kHalf, t, bad);
      const HD size = e.magnitude - e.shift;
      const HF rounded = __builtin_convertvector((HD)((HL)size & (size > HD{})), HF);
      value[p] = (HF)((HI)rounded | (e.x & ~kMagnitudeBits)) + 0.0f; // -0 becomes 0
    }
    float* to = range.values + i;
    if (many < kSums) {
      __builtin_memcpy(to, value, sizeof(float) * many);
    } else if constexpr (kStream) {
      for (int l = 0; l < kSums; l += kLanes) stream(to + l, load<VI>((const float*)value + l));
    } else {
      __builtin_memcpy(to, value, sizeof value);
    }
  });
  if constexpr (kStream) stream_fence();
  return !any_half(bad);
}

} // namespace

SoftSums l1_sums(const SoftRange& range, double t) { return range.h ? sums<true>(range, t) : sums<false>(range, t); }

bool soft_pass(const SoftRange& range, double t, bool stream) {
  if (range.h) return stream ? soft<true, true>(range, t) : soft<true, false>(range, t);
  return stream ? soft<false, true>(range, t) : soft<false, false>(range, t);
}

} // namespace lc::LC_ISA
