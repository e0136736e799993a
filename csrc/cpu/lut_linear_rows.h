// lut_linear with codebooks of each row, or of each row and group of columns: rows are decoded one by one, with their
// columns in lanes, and transposed into the tiles that lut_linear_tile.h multiplies.
#pragma once
#include "lut_linear_tile.h"

#include "simd8.h"

namespace lc::LC_ISA {
namespace {

LC_INLINE int code_at(const uint8_t* row, int64_t i, int width) {
  return width == 8 ? row[i] : row[i / 2] >> (i % 2 * 4) & 15;
}

// Unit `u` of a row, as A takes it; the columns past the last group of columns, which x has zeros for, are its too.
template <class A> LC_INLINE int32_t unit_at(const LutMatrix& w, const uint8_t* row, int64_t o, int64_t u) {
  uint32_t unit = 0;
  for (int c = 0; c < A::kColumns; ++c) {
    const int64_t i = u * A::kColumns + c, group = i / w.group_cols;
    const int64_t t = o * w.groups + (group < w.groups ? group : w.groups - 1);
    const int64_t at = (t << w.width) + code_at(row, i, w.width);
    uint32_t value;
    if constexpr (A::kColumns == 1)
      __builtin_memcpy(&value, w.codebook + at, 4);
    else
      value = A::kColumns == 2 ? uint16_t(w.table[at]) : uint8_t(w.table[at]);
    unit |= value << (32 / A::kColumns * c);
  }
  return int32_t(unit);
}

// kLanes units of codes of 4 bits, with one codebook.
#if defined(__AVX512BW__)
#define LC_LUT_LANES
template <class A> LC_INLINE VI units_of(const LutMatrix& w, const uint8_t* codes, int64_t t) {
  if constexpr (A::kColumns == 1) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i eight = _mm512_srli_epi32(lane, 3), shift = _mm512_slli_epi32(lane, 2); // counted modulo 32 by `and`
    const __m512i v = _mm512_permutexvar_epi32(eight, _mm512_castsi128_si512(_mm_loadl_epi64((const __m128i*)codes)));
    const __m512i code = _mm512_srlv_epi32(v, _mm512_and_si512(shift, _mm512_set1_epi32(31)));
    return (VI)_mm512_permutexvar_ps(code, _mm512_loadu_ps(w.codebook + (t << 4)));
  } else if constexpr (A::kColumns == 2) {
    const __m512i v = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)codes));
    const __m512i table = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i*)(w.table + (t << 4))));
    return (VI)_mm512_permutexvar_epi16(_mm512_or_si512(v, _mm512_slli_epi32(v, 12)), table);
  } else {
    const __m512i v = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)codes));
    const __m512i code = _mm512_and_si512(_mm512_or_si512(v, _mm512_slli_epi16(v, 4)), _mm512_set1_epi8(15));
    const __m128i table = _mm256_cvtepi16_epi8(_mm256_loadu_si256((const __m256i*)(w.table + (t << 4))));
    return (VI)_mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), code);
  }
}

LC_INLINE void transpose(VI (&r)[16]) {
  __m512i a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_epi32((__m512i)r[i], (__m512i)r[i + 1]);
    a[i + 1] = _mm512_unpackhi_epi32((__m512i)r[i], (__m512i)r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      b[i + 2 * j] = _mm512_unpacklo_epi64(a[i + j], a[i + j + 2]);
      b[i + 2 * j + 1] = _mm512_unpackhi_epi64(a[i + j], a[i + j + 2]);
    }
  for (int i = 0; i < 4; ++i) { // b[4 q + i], rows 4 q .. 4 q + 3: columns i, 4 + i, 8 + i, 12 + i
    const __m512i low0 = _mm512_shuffle_i32x4(b[i], b[4 + i], 0x88), low1 = _mm512_shuffle_i32x4(b[i], b[4 + i], 0xdd);
    const __m512i high0 = _mm512_shuffle_i32x4(b[8 + i], b[12 + i], 0x88);
    const __m512i high1 = _mm512_shuffle_i32x4(b[8 + i], b[12 + i], 0xdd);
    r[i] = (VI)_mm512_shuffle_i32x4(low0, high0, 0x88);
    r[8 + i] = (VI)_mm512_shuffle_i32x4(low0, high0, 0xdd);
    r[4 + i] = (VI)_mm512_shuffle_i32x4(low1, high1, 0x88);
    r[12 + i] = (VI)_mm512_shuffle_i32x4(low1, high1, 0xdd);
  }
}
#elif defined(__AVX2__) && LC_LANES == 8
#define LC_LUT_LANES
template <class A> LC_INLINE VI units_of(const LutMatrix& w, const uint8_t* codes, int64_t t) {
  if constexpr (A::kColumns == 1) {
    int32_t eight;
    __builtin_memcpy(&eight, codes, 4);
    const __m256i code = _mm256_srlv_epi32(_mm256_set1_epi32(eight), _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    const float* table = w.codebook + (t << 4);
    const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), code);
    const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), code);
    return (VI)_mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(code, 28)));
  } else {
    const __m256i table = _mm256_loadu_si256((const __m256i*)(w.table + (t << 4)));
    const __m256i even = _mm256_and_si256(table, _mm256_set1_epi16(255)), odd = _mm256_srli_epi16(table, 8);
    const auto bytes = [](__m256i v) { // in both halves, the low bytes of the 16 words
      return _mm256_permute4x64_epi64(_mm256_packus_epi16(v, v), 0x88);
    };
    if constexpr (A::kColumns == 2) {
      const __m256i v = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)codes));
      const __m256i code = _mm256_and_si256(_mm256_or_si256(v, _mm256_slli_epi32(v, 12)), _mm256_set1_epi16(15));
      const __m256i low = _mm256_shuffle_epi8(bytes(even), code), high = _mm256_shuffle_epi8(bytes(odd), code);
      return (VI)_mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi16(255)), _mm256_slli_epi16(high, 8));
    } else {
      const __m256i v = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)codes));
      const __m256i code = _mm256_and_si256(_mm256_or_si256(v, _mm256_slli_epi16(v, 4)), _mm256_set1_epi8(15));
      return (VI)_mm256_shuffle_epi8(bytes(even), code);
    }
  }
}

LC_INLINE void transpose(VI (&r)[8]) {
  V8F all[8];
  __builtin_memcpy(all, r, sizeof all);
  transpose8(all);
  __builtin_memcpy(r, all, sizeof all);
}
#endif

template <class A> struct RowTile : A {
  static constexpr int kUnits = 16, kSteps = (A::kColumns == 1 ? kExactBlock : kGroup) / A::kColumns / 16;
};

template <class A>
void row_blocks(const LutMatrix& w, const Packed& x, const float* bias, int64_t begin, int64_t end, float* y) {
  typedef RowTile<A> D;
  const int64_t columns = 16 * A::kColumns, steps = (w.cols + columns - 1) / columns;
  const int64_t stride = (w.cols * w.width + 511) / 512 * 64;
  float total[kLutBatch * kLutRows];
  for (int64_t b = begin; b < end; ++b) {
    const int64_t row = b * kLutRows, left = w.rows - row;
    tiles<D>(steps, x, left < kLutRows ? left : kLutRows, total, [&](int64_t r, int64_t s, int64_t last, VI* tile) {
      for (; s < last; ++s, tile += 16 * kVectors)
        for (int v = 0; v < kVectors; ++v) {
          int64_t o[kLanes]; // past the last row, the last row again
          for (int l = 0; l < kLanes; ++l)
            o[l] = row + r + v * kLanes + l < w.rows ? row + r + v * kLanes + l : w.rows - 1;
#if defined(LC_LUT_LANES)
          const int64_t first = s * columns, group = first / w.group_cols;
          if (w.width == 4 && (first + columns <= (group + 1) * w.group_cols || group >= w.groups - 1)) {
            const int64_t t = group < w.groups ? group : w.groups - 1;
            for (int part = 0; part < kVectors; ++part) { // of the 16 units
              VI u[kLanes];
              for (int l = 0; l < kLanes; ++l)
                u[l] = units_of<A>(w, w.codes + o[l] * stride + (first + part * kLanes * A::kColumns) / 2,
                                   o[l] * w.groups + t);
              transpose(u);
              for (int j = 0; j < kLanes; ++j) tile[(part * kLanes + j) * kVectors + v] = u[j];
            }
            continue;
          }
#endif
          for (int l = 0; l < kLanes; ++l)
            for (int j = 0; j < 16; ++j)
              tile[j * kVectors + v][l] = unit_at<A>(w, w.codes + o[l] * stride, o[l], s * 16 + j);
        }
    });
    finish<A>(total, x, w, row, bias, y);
  }
}

} // namespace
} // namespace lc::LC_ISA
