#include "../assign.h"

#include "simd.h"

namespace lc::LC_ISA {
namespace {

constexpr int kUnroll = 4; // independent chains hide the latency of compare and subtract

// Counting the midpoints below x beats a search while k is small: no gather and no branch.
void assign_by_counting(const float* x, int64_t n, const float* mids, int k, uint8_t* codes) {
  int64_t i = 0;
  for (; i + kUnroll * kLanes <= n; i += kUnroll * kLanes) {
    VF v[kUnroll];
    VI below[kUnroll] = {};
    for (int u = 0; u < kUnroll; ++u) v[u] = load<VF>(x + i + u * kLanes);
    for (int j = 0; j + 1 < k; ++j)
      for (int u = 0; u < kUnroll; ++u) below[u] -= (v[u] > splat(mids[j])); // true is -1
    for (int u = 0; u < kUnroll; ++u) store(codes + i + u * kLanes, low_bytes(below[u]));
  }
  for (; i < n; i += kLanes) {
    const int64_t left = n - i < kLanes ? n - i : kLanes;
    const VF v = load<VF>(x + i, left);
    VI below{};
    for (int j = 0; j + 1 < k; ++j) below -= (v > splat(mids[j]));
    store(codes + i, low_bytes(below), left);
  }
}

// A binary search over 255 midpoints padded with +inf; four searches run abreast. The product with the comparison keeps
// GCC from branching, which was 7 times slower. The 8 steps are the same for any k, so this pays from about 32 on.
void assign_by_search(const float* x, int64_t n, const float* mids, int k, uint8_t* codes) {
  float padded[256];
  for (int j = 0; j < 256; ++j) padded[j] = j + 1 < k ? mids[j] : __builtin_inff();
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    int at[4] = {};
    for (int step = 128; step; step >>= 1)
      for (int u = 0; u < 4; ++u) at[u] += step * (padded[at[u] + step - 1] < x[i + u]);
    for (int u = 0; u < 4; ++u) codes[i + u] = uint8_t(at[u]);
  }
  for (; i < n; ++i) {
    int at = 0;
    for (int step = 128; step; step >>= 1) at += step * (padded[at + step - 1] < x[i]);
    codes[i] = uint8_t(at);
  }
}

} // namespace

void assign_range(const float* x, int64_t n, const float* mids, int k, uint8_t* codes) {
  (k <= 32 ? assign_by_counting : assign_by_search)(x, n, mids, k, codes);
}

void decode_range(const uint8_t* codes, int64_t n, const float* codebook, float* x) {
  for (int64_t i = 0; i < n; ++i) x[i] = codebook[codes[i]];
}

} // namespace lc::LC_ISA
