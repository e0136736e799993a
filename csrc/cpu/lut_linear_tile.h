// What the arithmetics of lut_linear share: the loops over blocks of 64 rows, over a decoder D:
//   kColumns                 columns in a unit of 4 bytes: 1, 2 or 4
//   kUnits                   units that 64 bytes of codes hold for each of 16 rows
//   kSteps                   steps, of kUnits units, whose products are summed by themselves
//   Acc                      a vector of partial sums, a lane for each row
//   decode(p, lane, u)       the units of kLanes rows, from `lane` of the 16 at p
//   madd(acc, u, x)          acc plus the products of a unit of the weight and a unit of x, which all rows share
//   add(total, acc, step)    total plus what is in acc
//   kScaled                  whether x has steps, and the weight scales
// A batch of up to kFew rows goes through decoder and arithmetic at once. A larger one decodes a tile of 16 rows and
// kSteps steps into the L1 cache, and multiplies it by panels of x. Both sum in the same order.
#pragma once
#include "../lut_linear.h"

#include "activation.h"
#include "simd.h"

#define LC_INLINE_MEMBER inline __attribute__((always_inline))

namespace lc::LC_ISA {
namespace {

constexpr int kVectors = 16 / kLanes; // for 16 rows
#if defined(__AVX512F__)
constexpr int kPanel = 16; // rows of x whose partial sums fit the registers
constexpr int kFew = 8;    // beside decoded units
#elif LC_LANES == 8
constexpr int kPanel = 6;
constexpr int kFew = 1;
#else
constexpr int kPanel = 4;
constexpr int kFew = 1;
#endif

// What a kernel reads of x: units, panel by panel; for each row and group of columns its step; for each row its sum and
// outliers.
struct Packed {
  const int32_t* units;
  const float *step, *sum;
  const LutOutliers* outliers;
  int64_t batch, groups;
};

// A batch of M, for N vectors of rows: what is decoded goes from registers into the sums.
template <class D, int N, int M>
void few_rows(const D& d, const uint8_t* codes, int64_t steps, const Packed& x, float* total) {
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) store(total + m * kLutRows + n * kLanes, VF{});
  for (int64_t g = 0, s = 0; s < steps; ++g) {
    const int64_t end = s + D::kSteps < steps ? s + D::kSteps : steps;
    typename D::Acc acc[N][M] = {};
    for (; s < end; ++s) {
      const int32_t* at = x.units + s * D::kUnits * M;
      VI u[N][D::kUnits];
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) {
        const int lane = n * kLanes;
        const uint8_t* at64 = codes + s * 256 + lane / 16 * 64;
        if (M > 1) __builtin_prefetch(at64 + 2048);
        d.decode(at64, lane % 16, u[n]);
      }
#pragma GCC unroll 32
      for (int j = 0; j < D::kUnits; ++j)
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
          const VI one = splat(at[j * M + m]);
#pragma GCC unroll 8
          for (int n = 0; n < N; ++n) acc[n][m] = D::madd(acc[n][m], u[n][j], one);
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) {
        float* sum = total + m * kLutRows + n * kLanes;
        store(sum, D::add(load<VF>(sum), acc[n][m], x.step + m * x.groups + g));
      }
  }
}

// total[m][0 .. 16) += tile * panel for M rows of x, `groups` apart in `step`.
template <class D, int M>
void multiply(const VI* tile, int64_t units, const int32_t* x, const float* step, int64_t groups, float* total) {
  typename D::Acc acc[kVectors][M] = {};
  for (int64_t j = 0; j < units; ++j, tile += kVectors, x += M) {
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) {
      const VI one = VI{} + x[i];
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) acc[v][i] = D::madd(acc[v][i], tile[v], one);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      float* at = total + i * kLutRows + v * kLanes;
      store(at, D::add(load<VF>(at), acc[v][i], step + i * groups));
    }
}

template <class D> using Multiply = void (*)(const VI*, int64_t, const int32_t*, const float*, int64_t, float*);

template <class D> LC_INLINE Multiply<D> multiply_of(int m) {
  static constexpr Multiply<D> all[] = {
      multiply<D, 1>,  multiply<D, 2>,  multiply<D, 3>,  multiply<D, 4>,
#if defined(__AVX512F__) || LC_LANES == 8
      multiply<D, 5>,  multiply<D, 6>,
#endif
#if defined(__AVX512F__)
      multiply<D, 7>,  multiply<D, 8>,  multiply<D, 9>,  multiply<D, 10>, multiply<D, 11>,
      multiply<D, 12>, multiply<D, 13>, multiply<D, 14>, multiply<D, 15>, multiply<D, 16>,
#endif
  };
  return all[m - 1];
}

// Any batch, for a block of `rows` rows; decode(r, s, end, tile) writes the units of steps [s, end) of 16 rows from r.
template <class D, class F>
LC_INLINE void tiles(int64_t steps, const Packed& x, int64_t rows, float* total, const F& decode) {
  VI tile[D::kSteps * D::kUnits * kVectors];
  const int64_t all = steps * D::kUnits;
  __builtin_memset(total, 0, sizeof(float) * kLutRows * x.batch);
  for (int64_t g = 0, s = 0; s < steps; ++g, s += D::kSteps) {
    const int64_t end = s + D::kSteps < steps ? s + D::kSteps : steps;
    for (int64_t r = 0; r < rows; r += 16) {
      decode(r, s, end, tile);
      for (int64_t m = 0; m < x.batch; m += kPanel) {
        const int64_t left = x.batch - m, width = left < kPanel ? left : kPanel;
        const int32_t* units = x.units + m * all + s * D::kUnits * width;
        multiply_of<D>(int(width))(tile, (end - s) * D::kUnits, units, x.step + m * x.groups + g, x.groups,
                                   total + m * kLutRows + r);
      }
    }
  }
}

// The code of column c of row `row` + i, for n rows of a block, from any layout.
LC_INLINE void codes_of(const LutMatrix& w, int64_t row, int64_t n, int64_t c, uint8_t* code) {
  const int mask = (1 << w.width) - 1, per = 32 / w.width, in = int(c % per);
  if (w.layout == LutLayout::row_major) {
    const uint8_t* at = w.codes + row * ((w.cols * w.width + 511) / 512 * 64);
    for (int64_t i = 0; i < n; ++i, at += (w.cols * w.width + 511) / 512 * 64)
      code[i] = at[c * w.width / 8] >> (c * w.width % 8) & mask;
  } else if (w.layout == LutLayout::words || w.layout == LutLayout::nibbles) {
    const int64_t per_word = 16 / w.width, per_nibble = 4 / w.width, words = (w.cols + per_word - 1) / per_word;
    const uint8_t* block = w.codes + row / kLutRows * words * 128;
    for (int64_t i = 0; i < n; ++i) {
      if (w.layout == LutLayout::words) {
        const int bit = int(c % per_word) * w.width;
        code[i] = block[c / per_word * 128 + 2 * i + bit / 8] >> bit % 8 & mask;
      } else {
        const int bit = int(c % per_nibble) * w.width + (i < 32 ? 0 : 4);
        code[i] = block[c / per_nibble * 32 + i % 32] >> bit & mask;
      }
    }
  } else {
    const int64_t steps = (w.cols + per - 1) / per;
    const uint8_t* step = w.codes + (row / kLutRows * steps + c / per) * 256;
    const bool int16 = w.layout == LutLayout::int16;
    const int bit = int16 ? 4 * (in / 2 + 4 * (in % 2)) : 8 * (in % 4) + w.width * (in / 4);
    for (int64_t i = 0; i < n; ++i)
      code[i] = int16 && w.width == 8 ? step[i / 4 * 16 + 8 * (in / 2) + 2 * (i % 4) + in % 2]
                                      : step[4 * i + bit / 8] >> bit % 8 & mask;
  }
}

LC_INLINE void add_outliers(const LutMatrix& w, const LutOutliers& x, int64_t row, int64_t n, float* value) {
  for (int k = 0; k < x.count; ++k) {
    uint8_t code[kLutRows];
    codes_of(w, row, n, x.column[k], code);
    const int64_t group = w.groups ? x.column[k] / w.group_cols : 0;
    for (int64_t i = 0; i < n; ++i)
      value[i] += x.value[k] * w.codebook[(((row + i) * w.groups + group) << w.width) + code[i]];
  }
}

// y = f((total - offset * sum) * scale + outliers + bias) for the rows that there are.
template <class D>
void finish(const float* total, const Packed& x, const LutMatrix& w, int64_t row, const float* bias, float* y) {
  const int64_t n = w.rows - row < kLutRows ? w.rows - row : kLutRows;
  for (int64_t m = 0; m < x.batch; ++m, total += kLutRows) {
    float value[kLutRows];
    for (int64_t i = 0; i < n; ++i) value[i] = total[i];
    if (x.sum)
      for (int64_t i = 0; i < n; ++i) value[i] -= float(w.offset[row + i]) * x.sum[m];
    if (D::kScaled)
      for (int64_t i = 0; i < n; ++i) value[i] *= w.scale[row + i];
    if (x.outliers) add_outliers(w, x.outliers[m], row, n, value);
    if (bias)
      for (int64_t i = 0; i < n; ++i) value[i] += bias[row + i];
    activate(w.activation, value, n);
    __builtin_memcpy(y + m * w.rows + row, value, size_t(n) * sizeof(float));
  }
}

// All rows of a block, N vectors of them at a time.
template <class D, int N, int M>
void few(const D& d, const uint8_t* codes, int64_t steps, const Packed& x, int64_t rows, float* total) {
  for (int r = 0; r < rows; r += N * kLanes) few_rows<D, N, M>(d, codes + r / 16 * 64, steps, x, total + r);
}

template <class D>
LC_INLINE void few_of(const D& d, const uint8_t* codes, int64_t steps, const Packed& x, int64_t rows, float* total) {
#if defined(__AVX512F__)
  constexpr int kTwo = D::kUnits <= 4 ? 2 : 1; // as many as leave room in the registers
  static constexpr void (*all[])(const D&, const uint8_t*, int64_t, const Packed&, int64_t, float*) = {
      few<D, 4, 1>,    few<D, 2 * kTwo, 2>, few<D, 2 * kTwo, 3>, few<D, 2 * kTwo, 4>,
      few<D, kTwo, 5>, few<D, kTwo, 6>,     few<D, kTwo, 7>,     few<D, kTwo, 8>,
  };
  all[x.batch - 1](d, codes, steps, x, rows, total);
#elif LC_LANES == 16
  few<D, 1, 1>(d, codes, steps, x, rows, total); // more vectors take GCC 12 half a minute
#else
  few<D, kLanes >= 4 ? 4 : 16, 1>(d, codes, steps, x, rows, total);
#endif
}

// Blocks of the layouts that are decoded with one codebook.
template <class D> void shared_blocks(const D& d, const LutMatrix& w, const Packed& x, const float* bias, int64_t begin,
                                      int64_t end, float* y) {
  const int64_t columns = D::kUnits * D::kColumns, steps = (w.cols + columns - 1) / columns;
  float total[kLutBatch * kLutRows];
  for (int64_t b = begin; b < end; ++b) {
    const uint8_t* codes = w.codes + b * steps * 256;
    const int64_t row = b * kLutRows, left = w.rows - row, rows = left < kLutRows ? left : kLutRows;
    if (x.batch <= kFew) {
      few_of(d, codes, steps, x, rows, total);
    } else {
      tiles<D>(steps, x, rows, total, [&](int64_t r, int64_t s, int64_t last, VI* tile) {
        for (; s < last; ++s, tile += D::kUnits * kVectors) {
          const uint8_t* at = codes + s * 256 + r * 4;
          __builtin_prefetch(at + D::kSteps * 256);
#pragma GCC unroll 16
          for (int v = 0; v < kVectors; ++v) {
            VI u[D::kUnits];
            d.decode(at, v * kLanes, u);
#pragma GCC unroll 32
            for (int j = 0; j < D::kUnits; ++j) tile[j * kVectors + v] = u[j];
          }
        }
      });
    }
    finish<D>(total, x, w, row, bias, y);
  }
}

} // namespace
} // namespace lc::LC_ISA
