// Optimal partitions by dynamic programming. Part of kmeans1d.cc: included by nothing else.
#pragma once
#include "../kmeans1d.h"

#include "simd.h"

namespace lc::LC_ISA {
namespace {

// A double vector with half the lanes.
constexpr int kWide = kLanes > 1 ? kLanes / 2 : 1;
typedef double VD __attribute__((vector_size(8 * kWide)));
typedef int64_t VL __attribute__((vector_size(8 * kWide)));

struct Atoms {
  const double *w, *s;
};

// The i in [low, high] with the largest f[i] + (s[j] - s[i])^2 / (w[j] - w[i]), the lowest in a tie.
LC_INLINE int best_split(const double* f, Atoms a, int low, int high, int j, double* value) {
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

int kmeans1d_priced_partition(const double* w, const double* s, int m, double lambda, double* f, int* split,
                              int* cells) {
  const Atoms a{w, s};
  f[0] = 0, cells[0] = 0;
  for (int j = 1, low = 0; j <= m; ++j) { // the best split rises with j
    low = best_split(f, a, low, j - 1, j, &f[j]);
    f[j] -= lambda;
    split[j] = low;
    cells[j] = cells[low] + 1;
  }
  return cells[m];
}

} // namespace lc::LC_ISA
