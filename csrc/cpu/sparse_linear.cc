#include "../sparse_linear.h"

#include "simd8.h"

namespace lc::LC_ISA {
namespace {

// Eight elements of x, by eight loads.
template <class C> LC_INLINE V8F pick8(const float* x, const C* at) {
  return V8F{x[at[0]], x[at[1]], x[at[2]], x[at[3]], x[at[4]], x[at[5]], x[at[6]], x[at[7]]};
}

template <class C> void one(const float* x, const float* values, const C* columns, const int32_t* row_starts,
                            const float* bias, int64_t begin, int64_t end, float* y) {
  for (int64_t o = begin; o < end; ++o) {
    int64_t j = row_starts[o];
    const int64_t stop = row_starts[o + 1];
    V8F a{}, b{}; // two chains of fma
    for (; j + 16 <= stop; j += 16) {
      a = fma8(load<V8F>(values + j), pick8(x, columns + j), a);
      b = fma8(load<V8F>(values + j + 8), pick8(x, columns + j + 8), b);
    }
    if (j + 8 <= stop) {
      a = fma8(load<V8F>(values + j), pick8(x, columns + j), a);
      j += 8;
    }
    float rest = bias ? bias[o] : 0.0f;
    for (; j < stop; ++j) rest += values[j] * x[columns[j]];
    y[o] = sum8(a + b) + rest;
  }
}

// N vectors of the panel, so 8 N rows of x, against rows of the weight. Eight rows of results are kept and transposed,
// so that they are written in runs.
template <int N, class C> void many(const float* panel, int64_t batch, int64_t m0, const float* values,
                                    const C* columns, const int32_t* row_starts, int64_t rows, const float* bias,
                                    int64_t begin, int64_t end, float* y) {
  constexpr int kChains = N == 1 ? 4 : N == 2 ? 2 : 1;
  for (int64_t o = begin; o < end; o += 8) {
    const int n = int(end - o < 8 ? end - o : 8);
    V8F result[N][8] = {};
    for (int r = 0; r < n; ++r) {
      V8F acc[kChains][N] = {};
      int64_t j = row_starts[o + r];
      const int64_t stop = row_starts[o + r + 1];
      for (; j + kChains <= stop; j += kChains)
#pragma GCC unroll 4
        for (int c = 0; c < kChains; ++c) {
          const V8F w = splat8(values[j + c]);
          const float* p = panel + int64_t(columns[j + c]) * (8 * N);
#pragma GCC unroll 4
          for (int v = 0; v < N; ++v) acc[c][v] = fma8(w, load<V8F>(p + 8 * v), acc[c][v]);
        }
      for (; j < stop; ++j) {
        const float* p = panel + int64_t(columns[j]) * (8 * N);
        for (int v = 0; v < N; ++v) acc[0][v] = fma8(splat8(values[j]), load<V8F>(p + 8 * v), acc[0][v]);
      }
      for (int v = 0; v < N; ++v) {
        V8F s = acc[0][v];
        for (int c = 1; c < kChains; ++c) s += acc[c][v];
        result[v][r] = s + splat8(bias ? bias[o + r] : 0.0f);
      }
    }
    for (int v = 0; v < N; ++v) {
      transpose8(result[v]);
      for (int64_t i = 0; i < 8 && m0 + 8 * v + i < batch; ++i) {
        float* out = y + (m0 + 8 * v + i) * rows + o;
        if (n == 8)
          store(out, result[v][i]);
        else
          store(out, result[v][i], n);
      }
    }
  }
}

template <class C> void many_of(int width, const float* panel, int64_t batch, int64_t m0, const float* values,
                                const C* columns, const int32_t* row_starts, int64_t rows, const float* bias,
                                int64_t begin, int64_t end, float* y) {
  const auto run = width == 8 ? many<1, C> : width == 16 ? many<2, C> : many<4, C>;
  run(panel, batch, m0, values, columns, row_starts, rows, bias, begin, end, y);
}

} // namespace

void sparse_linear_one(const float* x, const float* values, const void* columns, int column_bytes,
                       const int32_t* row_starts, const float* bias, int64_t begin, int64_t end, float* y) {
  if (column_bytes == 2)
    one(x, values, (const uint16_t*)columns, row_starts, bias, begin, end, y);
  else
    one(x, values, (const int32_t*)columns, row_starts, bias, begin, end, y);
}

void sparse_linear_panel(const float* x, int64_t batch, int64_t cols, int64_t m0, int width, int64_t begin, int64_t end,
                         float* panel) {
  for (int64_t m = 0; m < width; m += 8) {
    const int64_t left = batch - m0 - m, n = left < 0 ? 0 : left < 8 ? left : 8;
    const float* from = x + (m0 + m) * cols;
    for (int64_t i = begin; i < end; i += 8) {
      const int64_t c = end - i < 8 ? end - i : 8;
      V8F r[8] = {};
      for (int64_t u = 0; u < n; ++u)
        r[u] = c == 8 ? load<V8F>(from + u * cols + i) : load<V8F>(from + u * cols + i, c);
      transpose8(r);
      for (int64_t u = 0; u < c; ++u) store(panel + (i + u) * width + m, r[u]);
    }
  }
}

void sparse_linear_many(const float* panel, int width, int64_t batch, int64_t m0, const float* values,
                        const void* columns, int column_bytes, const int32_t* row_starts, int64_t rows,
                        const float* bias, int64_t begin, int64_t end, float* y) {
  if (column_bytes == 2)
    many_of(width, panel, batch, m0, values, (const uint16_t*)columns, row_starts, rows, bias, begin, end, y);
  else
    many_of(width, panel, batch, m0, values, (const int32_t*)columns, row_starts, rows, bias, begin, end, y);
}

} // namespace lc::LC_ISA
