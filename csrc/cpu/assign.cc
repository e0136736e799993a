#include "../assign.h"

#include "simd8.h"

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

constexpr int kBins = 4096; // and the fewest values for which making them pays
constexpr int kDeepest = 7; // midpoints in a bin: 1.1 ns a value and 0.75 for each more, a search 6.9
constexpr int kBlock = 64;  // bins are computed with vectors, then used one by one

// A uniform grid over the midpoints. The bin of a value does not fall as the value rises, so all midpoints in lower
// bins are below it and all in higher bins are not.
struct Bins {
  float base, scale;
  int depth;            // midpoints in the fullest bin
  uint8_t start[kBins]; // midpoints in the bins before
};

// NaN goes to bin 0, where every comparison with it is false.
LC_INLINE VI bin_of(VF x, float base, float scale) {
  const VF at = (x - splat(base)) * splat(scale);
  return __builtin_convertvector(min(at > splat(0.0f) ? at : splat(0.0f), splat(float(kBins - 1))), VI);
}

// Whether such a grid is of use: not for midpoints that are equal, very close to each other, or too far apart for
// floats.
bool make_bins(const float* mids, int k, Bins& bins) {
  const float range = mids[k - 2] - mids[0];
  bins.base = mids[0], bins.scale = float(kBins - 1) / range;
  if (!(range > 0 && range < __builtin_inff() && bins.scale < __builtin_inff())) return false;
  bins.depth = 0;
  int filled = 0; // bins whose start is known
  for (int j = 0, in_bin = 0; j + 1 < k; ++j) {
    const int bin = bin_of(splat(mids[j]), bins.base, bins.scale)[0];
    in_bin = bin < filled ? in_bin + 1 : 1;
    bins.depth = in_bin > bins.depth ? in_bin : bins.depth;
    for (; filled <= bin; ++filled) bins.start[filled] = uint8_t(j);
  }
  for (; filled < kBins; ++filled) bins.start[filled] = uint8_t(k - 1);
  return bins.depth <= kDeepest;
}

void assign_by_bins(const float* x, int64_t n, const float* mids, int k, const Bins& bins, uint8_t* codes) {
  float padded[256];
  for (int j = 0; j < 256; ++j) padded[j] = j + 1 < k ? mids[j] : __builtin_inff();
  for (int64_t i = 0; i < n; i += kBlock) {
    const int left = int(n - i < kBlock ? n - i : kBlock);
    float block[kBlock] = {};
    int32_t bin[kBlock];
    __builtin_memcpy(block, x + i, size_t(left) * 4);
    for (int l = 0; l < kBlock; l += kLanes) store(bin + l, bin_of(load<VF>(block + l), bins.base, bins.scale));
    uint8_t out[kBlock];
    for (int l = 0; l < kBlock; ++l) {
      int code = bins.start[bin[l]];
      code += padded[code] < block[l];
      out[l] = uint8_t(code);
    }
    for (int step = 1; step < bins.depth; ++step)
      for (int l = 0; l < kBlock; ++l) out[l] = uint8_t(out[l] + (padded[out[l]] < block[l]));
    __builtin_memcpy(codes + i, out, size_t(left));
  }
}

// Up to 16 codewords are two registers: a table in memory costs four times as much.
void decode_by_registers(const uint8_t* codes, int64_t n, const float* codebook, int k, float* x) {
  float table[16] = {};
  __builtin_memcpy(table, codebook, size_t(k) * 4);
  const V8F low = load<V8F>(table), high = load<V8F>(table + 8);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const V8U code = widen_bytes8(codes + i);
    const V8F value = lookup8(low, code);
    store(x + i, k <= 8 ? value : select8(code << 28, lookup8(high, code), value));
  }
  for (; i < n; ++i) x[i] = table[codes[i]];
}

} // namespace

void assign_range(const float* x, int64_t n, const float* mids, int k, uint8_t* codes) {
  Bins bins;
  if (k <= 16 || (k <= 32 && n < kBins))
    assign_by_counting(x, n, mids, k, codes);
  else if (n >= kBins && make_bins(mids, k, bins))
    assign_by_bins(x, n, mids, k, bins, codes);
  else
    assign_by_search(x, n, mids, k, codes);
}

void decode_range(const uint8_t* codes, int64_t n, const float* codebook, int k, float* x) {
  if (k <= 16) return decode_by_registers(codes, n, codebook, k, x);
  for (int64_t i = 0; i < n; ++i) x[i] = codebook[codes[i]];
}

} // namespace lc::LC_ISA
