// Optimal partitions by dynamic programming. Part of kmeans1d.cc: included by nothing else.
#pragma once
#include "../kmeans1d.h"

#include "simd8.h"

namespace lc::LC_ISA {
namespace {

typedef int64_t V4L __attribute__((vector_size(32)));

struct Atoms {
  const double *w, *s;
};

// The i in [low, high] with the largest f[i] + (s[j] - s[i])^2 / (w[j] - w[i]), the lowest in a tie. Four at a time on
// every instruction set: a division of eight doubles takes twice as long, and there are often no more than ten.
LC_INLINE int best_split(const double* f, Atoms a, int low, int high, int j, double* value) {
  const double wj = a.w[j], sj = a.s[j];
  double best = -1e300;
  int at = low;
  if (high - low < 3) {
    for (int i = low; i <= high; ++i) {
      const double d = sj - a.s[i], v = f[i] + d * d / (wj - a.w[i]);
      if (v > best) best = v, at = i;
    }
    *value = best;
    return at;
  }
  V4D bests = V4D{} - 1e300;
  V4L ats = V4L{} + low;
  const auto step = [&](int i) {
    const V4D d = sj - load<V4D>(a.s + i), v = load<V4D>(f + i) + d * d / (wj - load<V4D>(a.w + i));
    const V4L better = v > bests;
    bests = better ? v : bests;
    ats = better ? V4L{0, 1, 2, 3} + i : ats;
  };
  int i = low;
  for (; i + 3 <= high; i += 4) step(i);
  if (i <= high) step(high - 3); // some of them a second time
  for (int l = 0; l < 4; ++l)
    if (bests[l] > best || (bests[l] == best && ats[l] < at)) best = bests[l], at = int(ats[l]);
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
