#include "../topk_prune.h"

#include "simd.h"

namespace lc::LC_ISA {
namespace {

constexpr int kUnroll = 4;
constexpr int32_t kMagnitude = 0x7fffffff, kInfinity = 0x7f800000;

} // namespace

TopkCounts topk_pass(const float* x, int64_t n, uint32_t low, uint32_t mid, uint32_t high, float* values, uint8_t* mask,
                     uint32_t* listed_bits, uint32_t* listed_at, int64_t capacity) {
  TopkCounts counts;
  // Keys are below 2^31, so signed comparisons do.
  const VI below_mid = splat(int32_t(mid - 1)), below_low = splat(int32_t(low - 1)), top = splat(int32_t(high));
  const VI inf = splat(kInfinity);
  VI kept{}, bad{};
  const auto list = [&](VI in_bracket, VI raw, int64_t at) {
    for (uint32_t lanes = lane_bits(in_bracket); lanes; lanes &= lanes - 1) {
      const int lane = __builtin_ctz(lanes);
      if (counts.listed < capacity) {
        listed_bits[counts.listed] = uint32_t(raw[lane]);
        listed_at[counts.listed] = uint32_t(at + lane);
      }
      ++counts.listed;
    }
  };
  int64_t i = 0;
  for (; i + kUnroll * kLanes <= n; i += kUnroll * kLanes) {
    VI raw[kUnroll], keep[kUnroll], bracket[kUnroll], listed{};
    for (int u = 0; u < kUnroll; ++u) {
      raw[u] = load<VI>(x + i + u * kLanes);
      const VI key = raw[u] & kMagnitude;
      keep[u] = key > below_mid;
      bracket[u] = (key > below_low) & ~(key > top);
      bad |= ~(inf > key);
      kept -= keep[u];
      listed |= bracket[u];
    }
    if (values)
      for (int u = 0; u < kUnroll; ++u) store(values + i + u * kLanes, raw[u] & keep[u]);
    if (mask)
      for (int u = 0; u < kUnroll; ++u) store(mask + i + u * kLanes, low_bytes(keep[u] & 1));
    if (any(listed)) // rare: the bracket holds under 1 % of a large tensor
      for (int u = 0; u < kUnroll; ++u) list(bracket[u], raw[u], i + u * kLanes);
  }
  for (; i < n; i += kLanes) {
    const int64_t left = n - i < kLanes ? n - i : kLanes;
    VI lane;
    for (int l = 0; l < kLanes; ++l) lane[l] = l;
    const VI valid = lane < splat(int32_t(left));
    const VI raw = load<VI>(x + i, left), key = raw & kMagnitude;
    const VI keep = (key > below_mid) & valid;
    bad |= ~(inf > key);
    kept -= keep;
    if (values) store(values + i, raw & keep, left);
    if (mask) store(mask + i, low_bytes(keep & 1), left);
    list((key > below_low) & ~(key > top) & valid, raw, i);
  }
  for (int l = 0; l < kLanes; ++l) counts.kept += kept[l];
  counts.finite = !any(bad);
  return counts;
}

void topk_histogram(const float* x, int64_t n, int prefix_shift, uint32_t prefix, int shift, uint32_t bins,
                    uint32_t* histogram) {
  for (int64_t i = 0; i < n; ++i) {
    uint32_t key;
    __builtin_memcpy(&key, x + i, sizeof key);
    key &= kMagnitude;
    if (key >> prefix_shift == prefix) ++histogram[(key >> shift) & (bins - 1)];
  }
}

} // namespace lc::LC_ISA
