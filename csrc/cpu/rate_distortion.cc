#include "../rate_distortion.h"

#include "simd8.h"

namespace lc::LC_ISA {
namespace {

constexpr int kBlock = 64; // keys are computed kBlock at a time with vectors, then used one by one

typedef double V8D __attribute__((vector_size(64)));
typedef double V4D __attribute__((vector_size(32)));
typedef int64_t V4L __attribute__((vector_size(32)));

struct Atoms {
  const double *w, *s;
};

// The i in [low, high] with the largest f[i] + (s[j] - s[i])^2 / (w[j] - w[i]), the lowest in a tie.
int best_split(const double* f, Atoms a, int low, int high, int j, double* value) {
  const double wj = a.w[j], sj = a.s[j];
  double best = -1;
  int at = low, i = low;
  if (high - low >= 8) {
    V4D bests = V4D{} - 1;
    V4L ats{}, index{low, low + 1, low + 2, low + 3};
    for (; i + 4 <= high + 1; i += 4) {
      const V4D d = sj - load<V4D>(a.s + i), v = load<V4D>(f + i) + d * d / (wj - load<V4D>(a.w + i));
      const V4L better = v > bests;
      bests = better ? v : bests;
      ats = better ? index : ats;
      index += 4;
    }
    for (int l = 0; l < 4; ++l)
      if (bests[l] > best || (bests[l] == best && ats[l] < at)) best = bests[l], at = int(ats[l]);
  }
  for (; i <= high; ++i) {
    const double d = sj - a.s[i], v = f[i] + d * d / (wj - a.w[i]);
    if (v > best) best = v, at = i;
  }
  *value = best;
  return at;
}

// What atom j contributes with the mean of the cell of atoms i..j-1 (counted from 0).
LC_INLINE double contribution(Atoms a, int i, int j) {
  const double c = (a.s[j] - a.s[i]) / (a.w[j] - a.w[i]);
  return c * (2 * (a.s[j] - a.s[j - 1]) - c * (a.w[j] - a.w[j - 1]));
}

// g[j] and tail[j] for j in [first, last]; the best split of j rises with j, so halving j halves the candidates.
void fill_layer(const double* f, double* g, double* tail, Atoms a, int first, int last, int low, int high) {
  while (first <= last) {
    const int j = (first + last) / 2;
    const int at = best_split(f, a, low, high < j - 1 ? high : j - 1, j, &g[j]);
    tail[j] = contribution(a, at, j);
    if (j - first < last - j) { // recurse into the shorter side
      fill_layer(f, g, tail, a, first, j - 1, low, at);
      first = j + 1, low = at;
    } else {
      fill_layer(f, g, tail, a, j + 1, last, at, high);
      last = j - 1, high = at;
    }
  }
}

} // namespace

bool value_histogram(const float* x, int64_t n, lc::ValueGrid grid, uint64_t* table, double* squares) {
  const int32_t low_bits = int32_t((uint32_t(1) << grid.shift) - 1);
  uint64_t* middle = table + grid.half;
  const V8F center = splat8(grid.center), base = splat8(grid.base);
  const V8I base_bits = (V8I)base;
  V8D total{};
  alignas(64) int32_t keys[kBlock];
  float tail[kBlock];
  for (int64_t i = 0; i < n; i += kBlock) {
    const int64_t left = n - i < kBlock ? n - i : kBlock;
    const float* block = x + i;
    if (left < kBlock) {
      for (int j = 0; j < kBlock; ++j) tail[j] = j < left ? x[i + j] : grid.center;
      block = tail;
    }
    V8I off{};
    for (int j = 0; j < kBlock; j += 8) {
      const V8F t = load<V8F>(block + j) - center;
      const V8I key = ((V8I)((V8F)((V8I)t & 0x7fffffff) + base) - base_bits) ^ V8I(t < splat8(0.0f));
      off |= V8I((V8U)((key >> grid.shift) + grid.half) >= V8U{} + uint32_t(2 * grid.half));
      store(keys + j, key);
      const V8D d = __builtin_convertvector(load<V8F>(block + j), V8D) - double(grid.center);
      total += d * d;
    }
    int32_t seen = 0;
    for (int l = 0; l < 8; ++l) seen |= off[l];
    if (seen) return false;
    for (int j = 0; j < left; ++j) middle[keys[j] >> grid.shift] += (uint64_t(1) << 40) | uint32_t(keys[j] & low_bits);
  }
  *squares = ((total[0] + total[4]) + (total[1] + total[5])) + ((total[2] + total[6]) + (total[3] + total[7]));
  return true;
}

void partition_gains(const double* w, const double* s, int m, int k, double* gain, double* last) {
  const Atoms a{w, s};
  const int64_t stride = m + 1;
  for (int i = 0; i <= m; ++i) gain[i] = last[i] = 0;
  for (int cells = 1; cells <= k; ++cells) {
    const double* f = gain + (cells - 1) * stride;
    double *g = gain + cells * stride, *tail = last + cells * stride;
    for (int i = 0; i < cells && i <= m; ++i) g[i] = f[i], tail[i] = tail[i - stride]; // a cell for each atom
    if (cells == 1)
      for (int i = 1; i <= m; ++i) g[i] = s[i] * s[i] / w[i], tail[i] = contribution(a, 0, i);
    else
      fill_layer(f, g, tail, a, cells, m, cells - 1, m - 1);
  }
}

} // namespace lc::LC_ISA
