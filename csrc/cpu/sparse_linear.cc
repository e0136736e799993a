#include "../sparse_linear.h"

#include "simd16.h"
#include "tile.h"

namespace lc::LC_ISA {
namespace {

template <class V, class C> void one(const float* x, const V* values, const C* columns, const int32_t* order,
                                     const int64_t* starts, int64_t rows, const float* bias, bool accumulate,
                                     int64_t begin, int64_t end, float* y) {
  for (int64_t s = begin; s < end; ++s) {
    V8F low{}, high{}; // also with AVX-512: putting 16 picked floats into one register costs more than it saves
    for (int64_t j = 16 * starts[s]; j < 16 * starts[s + 1]; j += 16) {
      low = fused8(load8(values + j), pick_columns8(x, columns + j), low);
      high = fused8(load8(values + j + 8), pick_columns8(x, columns + j + 8), high);
    }
    float sums[16];
    store(sums, low), store(sums + 8, high);
    const int64_t n = rows - 16 * s < 16 ? rows - 16 * s : 16;
    for (int64_t l = 0; l < n; ++l) {
      const int64_t o = order[16 * s + l];
      const float sum = bias ? sums[l] + bias[o] : sums[l];
      y[o] = accumulate ? y[o] + sum : sum;
    }
  }
}

// A vector of a panel of 8 rows of x, and of one of 16 and more.
LC_INLINE void zero(V8F& v) { v = V8F{}; }
LC_INLINE void zero(V16F& v) { v = zero16(); }
LC_INLINE void keep(float* p, V8F v) { store(p, v); }
LC_INLINE void keep(float* p, V16F v) { store16(p, v); }
LC_INLINE V8F sum(V8F a, V8F b) { return a + b; }
LC_INLINE V16F sum(V16F a, V16F b) { return add16(a, b); }
LC_INLINE void add_product(V8F& acc, float w, const float* p) { acc = fused8(splat8(w), load<V8F>(p), acc); }
LC_INLINE void add_product(V16F& acc, float w, const float* p) { acc = fused16(splat16(w), load16(p), acc); }

constexpr int kTileRows = 64;

// A panel of 8 or 16 rows of x, one vector wide, against rows of the weight. Four entries of a row at a time, for
// enough independent sums. Wider panels are slower: 16 rows of 4096 columns stay in the second cache, 32 and 64 do not;
// and blocks of columns that fit the first cache cost more in mispredicted ends of loops than they save.
template <class F, class I> void many(const float* panel, int64_t batch, int64_t first, const float* values,
                                      const I* columns, const int32_t* row_starts, int64_t rows, const float* bias,
                                      bool accumulate, int64_t begin, int64_t end, float* y) {
  constexpr int kWidth = sizeof(F) / sizeof(float);
  alignas(64) float tile[kTileRows * kWidth];
  for (int64_t o = begin; o < end; o += kTileRows) {
    const int64_t n = end - o < kTileRows ? end - o : kTileRows;
    for (int64_t r = 0; r < n; ++r) {
      F a, b, c, d;
      zero(a), zero(b), zero(c), zero(d);
      int64_t j = row_starts[o + r];
      const int64_t stop = row_starts[o + r + 1];
      for (; j + 4 <= stop; j += 4) {
        add_product(a, values[j], panel + int64_t(columns[j]) * kWidth);
        add_product(b, values[j + 1], panel + int64_t(columns[j + 1]) * kWidth);
        add_product(c, values[j + 2], panel + int64_t(columns[j + 2]) * kWidth);
        add_product(d, values[j + 3], panel + int64_t(columns[j + 3]) * kWidth);
      }
      for (; j < stop; ++j) add_product(a, values[j], panel + int64_t(columns[j]) * kWidth);
      keep(tile + r * kWidth, sum(sum(a, b), sum(c, d)));
    }
    store_tile(tile, kWidth, n, bias, accumulate, rows, first, batch, o, y);
  }
}

// N vectors of 16 rows of x. Two chains for N = 2, for enough independent sums.
template <int N> void pieces_of(const float* panel, int64_t batch, int64_t first, const lc::SparsePieces& p,
                                const int32_t* row_starts, int64_t rows, int64_t cols, const float* bias,
                                bool accumulate, int64_t begin, int64_t end, float* y) {
  constexpr int kWidth = 16 * N, C = N == 4 ? 1 : 2;
  alignas(64) float tile[kTileRows * kWidth];
  const int64_t blocks = (cols + p.block - 1) / p.block;
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    __builtin_memset(tile, 0, sizeof tile);
    int64_t piece = p.piece_starts[chunk];
    const float* value = p.values + row_starts[kTileRows * chunk];
    const uint8_t* offset = p.offsets + row_starts[kTileRows * chunk];
    for (int64_t b = 0; b < blocks; ++b) {
      const float* const at = panel + b * p.block * kWidth;
      for (const int64_t last = piece + p.counts[chunk * blocks + b]; piece < last; ++piece) {
        float* const sums = tile + p.rows[piece] * kWidth;
        V16F acc[C][N];
#pragma GCC unroll 4
        for (int v = 0; v < N; ++v) {
          acc[0][v] = load16(sums + 16 * v);
          if constexpr (C == 2) acc[1][v] = zero16();
        }
        const int length = p.lengths[piece];
        int j = 0;
        for (; j + C <= length; j += C)
#pragma GCC unroll 2
          for (int c = 0; c < C; ++c) {
            const V16F w = splat16(value[j + c]);
            const float* x = at + offset[j + c] * kWidth;
#pragma GCC unroll 4
            for (int v = 0; v < N; ++v) acc[c][v] = fused16(w, load16(x + 16 * v), acc[c][v]);
          }
        if constexpr (C == 2)
          if (j < length) {
            const V16F w = splat16(value[j]);
            const float* x = at + offset[j] * kWidth;
#pragma GCC unroll 4
            for (int v = 0; v < N; ++v) acc[0][v] = fused16(w, load16(x + 16 * v), acc[0][v]);
          }
        value += length, offset += length;
#pragma GCC unroll 4
        for (int v = 0; v < N; ++v) {
          if constexpr (C == 2) acc[0][v] = add16(acc[0][v], acc[1][v]);
          store16(sums + 16 * v, acc[0][v]);
        }
      }
    }
    const int64_t o = kTileRows * chunk, n = rows - o < kTileRows ? rows - o : kTileRows;
    store_tile(tile, kWidth, n, bias, accumulate, rows, first, batch, o, y);
  }
}

template <class V> void one_of(const float* x, const V* values, const void* columns, int column_bytes,
                               const int32_t* order, const int64_t* starts, int64_t rows, const float* bias,
                               bool accumulate, int64_t begin, int64_t end, float* y) {
  if (column_bytes == 2)
    one(x, values, (const uint16_t*)columns, order, starts, rows, bias, accumulate, begin, end, y);
  else
    one(x, values, (const int32_t*)columns, order, starts, rows, bias, accumulate, begin, end, y);
}

} // namespace

void sparse_linear_one(const float* x, const void* values, bool bfloat, const void* columns, int column_bytes,
                       const int32_t* order, const int64_t* starts, int64_t rows, const float* bias, bool accumulate,
                       int64_t begin, int64_t end, float* y) {
  if (bfloat)
    one_of(x, (const uint16_t*)values, columns, column_bytes, order, starts, rows, bias, accumulate, begin, end, y);
  else
    one_of(x, (const float*)values, columns, column_bytes, order, starts, rows, bias, accumulate, begin, end, y);
}

void sparse_linear_panel(const float* x, int64_t batch, int64_t cols, int64_t first, int width, int64_t begin,
                         int64_t end, float* panel) {
  for (int64_t m = 0; m < width; m += 8) {
    const int64_t left = batch - first - m, n = left < 0 ? 0 : left < 8 ? left : 8;
    const float* from = x + (first + m) * cols;
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

void sparse_linear_many(const float* panel, int width, int64_t batch, int64_t first, const float* values,
                        const void* columns, int column_bytes, const int32_t* row_starts, int64_t rows,
                        const float* bias, bool accumulate, int64_t begin, int64_t end, float* y) {
  const auto run = [&](const auto* c) {
    if (width == 8)
      many<V8F>(panel, batch, first, values, c, row_starts, rows, bias, accumulate, begin, end, y);
    else
      many<V16F>(panel, batch, first, values, c, row_starts, rows, bias, accumulate, begin, end, y);
  };
  if (column_bytes == 2)
    run((const uint16_t*)columns);
  else
    run((const int32_t*)columns);
}

void sparse_linear_pieces(const float* panel, int width, int64_t batch, int64_t first, const lc::SparsePieces& pieces,
                          const int32_t* row_starts, int64_t rows, int64_t cols, const float* bias, bool accumulate,
                          int64_t begin, int64_t end, float* y) {
  (width == 32 ? pieces_of<2> : pieces_of<4>)(panel, batch, first, pieces, row_starts, rows, cols, bias, accumulate,
                                              begin, end, y);
}

} // namespace lc::LC_ISA
