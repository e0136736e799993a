#include "../kmeans1d.h"

#include "simd.h"

namespace lc::LC_ISA {
namespace {

constexpr int kBlock = 64; // keys are computed kBlock at a time with vectors, then used one by one
static_assert(kBlock % kLanes == 0);

// The keys of kBlock values. Returns a mask of those that are off the grid.
LC_INLINE VI block_keys(const float* x, Kmeans1dGrid grid, int32_t* keys) {
  const VF center = splat(grid.center), base = splat(grid.base);
  const VI base_bits = bits(base);
  VI off{};
  for (int i = 0; i < kBlock; i += kLanes) {
    const VF t = load<VF>(x + i) - center;
    const VI key = (bits(abs(t) + base) - base_bits) ^ VI(t < splat(0.0f)); // ~key below the center
    const VU bin = (VU)((key >> grid.shift) + grid.half);
    off |= VI(bin >= VU{} + uint32_t(2 * grid.half));
    store(keys + i, key);
  }
  return off;
}

// f(i, key) for every i; false if any is off the grid, in which case f has seen only some of them.
template <class F> LC_INLINE bool for_each_key(const float* x, int64_t n, Kmeans1dGrid grid, const F& f) {
  alignas(64) int32_t keys[kBlock];
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) {
    if (any(block_keys(x + i, grid, keys))) return false;
    for (int j = 0; j < kBlock; ++j) f(i + j, keys[j]);
  }
  if (i < n) {
    float tail[kBlock];
    for (int j = 0; j < kBlock; ++j) tail[j] = i + j < n ? x[i + j] : grid.center;
    if (any(block_keys(tail, grid, keys))) return false;
    for (int j = 0; i + j < n; ++j) f(i + j, keys[j]);
  }
  return true;
}

// A double vector for the partition, with half the lanes.
constexpr int kWide = kLanes > 1 ? kLanes / 2 : 1;
typedef double VD __attribute__((vector_size(8 * kWide)));
typedef int64_t VL __attribute__((vector_size(8 * kWide)));

struct Atoms {
  const double *w, *s;
};

// The i in [low, high] with the largest f[i] + (s[j] - s[i])^2 / (w[j] - w[i]), the lowest in a tie.
int best_split(const double* f, Atoms a, int low, int high, int j, double* value) {
  const double wj = a.w[j], sj = a.s[j];
  double best = -1e300;
  int at = low, i = low;
  if (high - low >= 2 * kWide) {
    VD bests = VD{} - 1e300;
    VL ats = VL{} + low, index;
    for (int l = 0; l < kWide; ++l) index[l] = low + l;
    for (; i + kWide <= high + 1; i += kWide) {
      const VD d = sj - load<VD>(a.s + i), v = load<VD>(f + i) + d * d / (wj - load<VD>(a.w + i));
      const VL better = v > bests;
      bests = better ? v : bests;
      ats = better ? index : ats;
      index += kWide;
    }
    for (int l = 0; l < kWide; ++l)
      if (bests[l] > best || (bests[l] == best && ats[l] < at)) best = bests[l], at = int(ats[l]);
  }
  for (; i <= high; ++i) {
    const double d = sj - a.s[i], v = f[i] + d * d / (wj - a.w[i]);
    if (v > best) best = v, at = i;
  }
  *value = best;
  return at;
}

// g[j] and split[j] for j in [first, last]; the best split of j rises with j, so halving j halves the candidates.
void fill_layer(const double* f, double* g, int* split, Atoms a, int first, int last, int low, int high) {
  while (first <= last) {
    const int j = (first + last) / 2;
    const int at = best_split(f, a, low, high < j - 1 ? high : j - 1, j, &g[j]);
    split[j] = at;
    if (j - first < last - j) { // recurse into the shorter side
      fill_layer(f, g, split, a, first, j - 1, low, at);
      first = j + 1, low = at;
    } else {
      fill_layer(f, g, split, a, j + 1, last, at, high);
      last = j - 1, high = at;
    }
  }
}

} // namespace

bool kmeans1d_histogram(const float* x, int64_t n, Kmeans1dGrid grid, uint64_t* table) {
  const int32_t low_bits = int32_t((uint32_t(1) << grid.shift) - 1);
  uint64_t* middle = table + grid.half;
  return for_each_key(x, n, grid, [&](int64_t, int32_t key) {
    middle[key >> grid.shift] += (uint64_t(1) << 40) | uint32_t(key & low_bits);
  });
}

bool kmeans1d_histogram_weighted(const float* x, const float* h, int64_t n, Kmeans1dGrid grid, double* w, double* s) {
  return for_each_key(x, n, grid, [&](int64_t i, int32_t key) {
    const int bin = (key >> grid.shift) + grid.half;
    w[bin] += double(h[i]);
    s[bin] += double(h[i]) * (double(x[i]) - double(grid.center));
  });
}

int64_t kmeans1d_gather(const float* x, int64_t n, Kmeans1dGrid grid, const uint8_t* wanted, uint32_t* at) {
  int64_t found = 0;
  const uint8_t* middle = wanted + grid.half;
  for_each_key(x, n, grid, [&](int64_t i, int32_t key) {
    at[found] = uint32_t(i); // branch-free: overwritten unless wanted
    found += middle[key >> grid.shift];
  });
  return found;
}

Kmeans1dRange kmeans1d_range(const float* x, int64_t n) {
  VF low = splat(x[0]), high = low;
  VI bad{};
  for (int64_t i = 0; i < n; i += kLanes) {
    VF v = low;
    if (n - i >= kLanes)
      v = load<VF>(x + i);
    else
      for (int l = 0; i + l < n; ++l) v[l] = x[i + l];
    bad |= ~(splat(0x7f800000) > (bits(v) & 0x7fffffff));
    low = min(v, low);
    high = max(v, high);
  }
  Kmeans1dRange range{low[0], high[0], !any(bad)};
  for (int l = 1; l < kLanes; ++l) {
    range.low = low[l] < range.low ? low[l] : range.low;
    range.high = high[l] > range.high ? high[l] : range.high;
  }
  return range;
}

void kmeans1d_partition(const double* w, const double* s, int m, int k, double* scratch, int* splits, int* ends) {
  const Atoms a{w, s};
  const int64_t stride = m + 1;
  double *f = scratch, *g = scratch + stride;
  for (int j = 1; j <= m; ++j) f[j] = s[j] * s[j] / w[j]; // one cell
  f[0] = -1e300;                                          // never: a cell is not empty
  for (int cells = 2; cells <= k; ++cells) {
    int* split = splits + (cells - 1) * stride;
    if (cells == k) {
      split[m] = best_split(f, a, k - 1, m - 1, m, &g[m]);
    } else {
      for (int j = 0; j < cells; ++j) g[j] = -1e300;
      fill_layer(f, g, split, a, cells, m - (k - cells), cells - 1, m - 1);
    }
    double* swap = f;
    f = g, g = swap;
  }
  ends[k - 1] = m;
  for (int c = k - 1; c > 0; --c) ends[c - 1] = splits[c * stride + ends[c]];
}

double kmeans1d_distortion(const float* x, const float* h, int64_t n, const uint8_t* codes, const float* codebook) {
  // Eight sums on every instruction set, so that the order of the additions is the same on all.
  typedef float V8F __attribute__((vector_size(32)));
  typedef double V8D __attribute__((vector_size(64)));
  V8D sums{};
  for (int64_t i = 0; i < n; i += 8) {
    const int64_t left = n - i < 8 ? n - i : 8;
    V8F q{}, weight = V8F{} + 1.0f;
    for (int l = 0; l < left; ++l) q[l] = codebook[codes[i + l]];
    const V8F value = left == 8 ? load<V8F>(x + i) : load<V8F>(x + i, left);
    if (h) weight = left == 8 ? load<V8F>(h + i) : load<V8F>(h + i, left);
    const V8D d = __builtin_convertvector(value, V8D) - __builtin_convertvector(q, V8D);
    sums += __builtin_convertvector(weight, V8D) * d * d;
  }
  return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

} // namespace lc::LC_ISA
