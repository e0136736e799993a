// Rows of results of a batch, one row of the weight after the other, on their way to y.
// Included only by csrc/cpu/*.cc, after simd8.h.
#pragma once
#include "simd8.h"

namespace lc::LC_ISA {

// tile[r * width + i] is the sum of row begin + r of the weight and row first + i of x; width is a multiple of 8. The
// `count` of them that exist go to y[first + i, begin + r], with the bias, and added to what is there if `accumulate`.
LC_INLINE void store_tile(const float* tile, int width, int64_t n, const float* bias, bool accumulate, int64_t rows,
                          int64_t first, int64_t batch, int64_t begin, float* y) {
  for (int64_t r = 0; r < n; r += 8) {
    const int64_t left = n - r < 8 ? n - r : 8, o = begin + r;
    const V8F b = !bias ? V8F{} : left == 8 ? load<V8F>(bias + o) : load<V8F>(bias + o, left);
    for (int i = 0; i < width && first + i < batch; i += 8) {
      V8F t[8] = {};
      for (int64_t u = 0; u < left; ++u) t[u] = load<V8F>(tile + (r + u) * width + i);
      transpose8(t);
      for (int64_t u = 0; u < 8 && first + i + u < batch; ++u) {
        float* out = y + (first + i + u) * rows + o;
        V8F sum = bias ? t[u] + b : t[u];
        if (left == 8) {
          if (accumulate) sum = load<V8F>(out) + sum;
          store(out, sum);
        } else {
          if (accumulate) sum = load<V8F>(out, left) + sum;
          store(out, sum, left);
        }
      }
    }
  }
}

} // namespace lc::LC_ISA
