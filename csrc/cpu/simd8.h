// Vectors of eight 32-bit lanes on every instruction set, for the kernels of packed layers: eight codes of any width
// start on a byte, and eight floats are one AVX2 register. Where registers are narrower the compiler splits them.
// Included only by csrc/cpu/*.cc, after simd.h; the same rules hold (no standard library templates).
#pragma once
#include "simd.h"

namespace lc::LC_ISA {

typedef float V8F __attribute__((vector_size(32)));
typedef int32_t V8I __attribute__((vector_size(32)));
typedef uint32_t V8U __attribute__((vector_size(32)));

typedef float V4F __attribute__((vector_size(16)));
typedef double V4D __attribute__((vector_size(32)));

LC_INLINE V8F splat8(float x) {
  int32_t b;
  __builtin_memcpy(&b, &x, 4);
  return (V8F)(V8I{} + b);
}

// Eight bytes as lanes. GCC 12 lowers __builtin_convertvector from bytes lane by lane: 5 times slower where it decodes.
LC_INLINE V8U widen_bytes8(const uint8_t* p) {
#if defined(__AVX2__)
  return (V8U)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
  return V8U{p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7]};
#endif
}

// a * b + c, with one rounding where the hardware has it.
LC_INLINE V8F fma8(V8F a, V8F b, V8F c) {
#if defined(__FMA__)
  return (V8F)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

LC_INLINE float sum8(V8F v) {
  const V8F a = v + __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3);
  return (a[0] + a[2]) + (a[1] + a[3]);
}

// table[index & 7] for each lane.
LC_INLINE V8F lookup8(V8F table, V8U index) {
#if defined(__AVX2__)
  return (V8F)_mm256_permutevar8x32_ps((__m256)table, (__m256i)index);
#else
  return __builtin_shuffle(table, (V8I)index); // taken modulo 8
#endif
}

// table[index] for each lane.
LC_INLINE V8F gather8(const float* table, V8U index) {
#if defined(__AVX2__)
  return (V8F)_mm256_i32gather_ps(table, (__m256i)index, 4);
#else
  V8F v;
  for (int l = 0; l < 8; ++l) v[l] = table[index[l]];
  return v;
#endif
}

// bytes[index] for each lane; three bytes more are read.
LC_INLINE V8U gather_bytes8(const uint8_t* bytes, V8U index) {
#if defined(__AVX2__)
  return (V8U)_mm256_i32gather_epi32((const int*)bytes, (__m256i)index, 1) & 255;
#else
  V8U v;
  for (int l = 0; l < 8; ++l) v[l] = bytes[index[l]];
  return v;
#endif
}

// The low byte of each lane. GCC 12 lowers __builtin_convertvector from uint32 to uint8 lane by lane on AVX2.
LC_INLINE uint64_t low_bytes8(V8U v) {
#if defined(__AVX2__)
  const __m256i gather = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, //
                                          -1, -1, -1, -1, 0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m256i b = _mm256_shuffle_epi8((__m256i)v, gather);
  return uint64_t(_mm_cvtsi128_si64(_mm_or_si128(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1))));
#else
  uint64_t bytes = 0;
  for (int l = 0; l < 8; ++l) bytes |= uint64_t(v[l] & 255) << (8 * l);
  return bytes;
#endif
}

// Bit i is set where lane i of the mask is true.
LC_INLINE uint32_t lane_bits8(V8I mask) {
#if defined(__AVX2__)
  return uint32_t(_mm256_movemask_ps((__m256)mask));
#else
  uint32_t b = 0;
  for (int l = 0; l < 8; ++l) b |= uint32_t(mask[l] & 1) << l;
  return b;
#endif
}

// yes where the top bit of the lane of `sign` is set, else no.
LC_INLINE V8F select8(V8U sign, V8F yes, V8F no) {
#if defined(__AVX2__)
  return (V8F)_mm256_blendv_ps((__m256)no, (__m256)yes, (__m256)sign);
#else
  return (V8I)sign < 0 ? yes : no;
#endif
}

// Four floats as doubles. GCC 12 lowers __builtin_convertvector through memory, two at a time: 5 times slower.
LC_INLINE V4D widen4(V4F v) {
#if defined(__AVX2__)
  return (V4D)_mm256_cvtps_pd((__m128)v);
#else
  return __builtin_convertvector(v, V4D);
#endif
}

// Rows become columns.
LC_INLINE void transpose8(V8F (&r)[8]) {
  V8F a[8], b[8];
  for (int i = 0; i < 8; i += 2) {
    a[i] = __builtin_shufflevector(r[i], r[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    a[i + 1] = __builtin_shufflevector(r[i], r[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int i = 0; i < 8; i += 4)
    for (int j = 0; j < 2; ++j) {
      b[i + 2 * j] = __builtin_shufflevector(a[i + j], a[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
      b[i + 2 * j + 1] = __builtin_shufflevector(a[i + j], a[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  for (int i = 0; i < 4; ++i) {
    r[i] = __builtin_shufflevector(b[i], b[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    r[i + 4] = __builtin_shufflevector(b[i], b[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}

// The low bytes of 32 lanes. GCC 12 lowers __builtin_convertvector to bytes lane by lane on AVX2.
LC_INLINE void store_bytes8(uint8_t* p, V8I a, V8I b, V8I c, V8I d) {
#if defined(__AVX2__)
  const __m256i ab = _mm256_packs_epi32((__m256i)a, (__m256i)b), cd = _mm256_packs_epi32((__m256i)c, (__m256i)d);
  const __m256i all = _mm256_packus_epi16(ab, cd);
  _mm256_storeu_si256((__m256i*)p, _mm256_permutevar8x32_epi32(all, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
#else
  for (int l = 0; l < 8; ++l) {
    p[l] = uint8_t(a[l]), p[8 + l] = uint8_t(b[l]);
    p[16 + l] = uint8_t(c[l]), p[24 + l] = uint8_t(d[l]);
  }
#endif
}

} // namespace lc::LC_ISA
