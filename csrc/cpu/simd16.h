// Sixteen 32-bit lanes on every instruction set, for kernels that keep sixteen rows in lanes: one AVX-512 register, or
// two vectors of simd8.h. Every operation rounds once on every instruction set, so results agree bit for bit.
// Included only by csrc/cpu/*.cc; the same rules hold as for simd.h.
#pragma once
#include "simd8.h"
#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace lc::LC_ISA {

// a * b + c with one rounding everywhere. Where the hardware has no such instruction (`scalar` on x86-64) it is a call
// of fmaf, which is slow, and right; not inline, since kernels unroll it hundreds of times.
#if defined(__FMA__)
LC_INLINE V8F fused8(V8F a, V8F b, V8F c) { return (V8F)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
#elif defined(__aarch64__)
LC_INLINE V8F fused8(V8F a, V8F b, V8F c) {
  float32x4_t x[2], y[2], z[2];
  __builtin_memcpy(x, &a, sizeof a), __builtin_memcpy(y, &b, sizeof b), __builtin_memcpy(z, &c, sizeof c);
  z[0] = vfmaq_f32(z[0], x[0], y[0]), z[1] = vfmaq_f32(z[1], x[1], y[1]);
  __builtin_memcpy(&c, z, sizeof c);
  return c;
}
#else
__attribute__((noinline, unused)) static V8F fused8(V8F a, V8F b, V8F c) {
  for (int l = 0; l < 8; ++l) c[l] = __builtin_fmaf(a[l], b[l], c[l]);
  return c;
}
#endif

#if defined(__AVX512F__) && LC_LANES == 16
#define LC_ONE_REGISTER 1
struct V16F {
  __m512 v;
};
struct V16U {
  __m512i v;
};
LC_INLINE V16F zero16() { return {_mm512_setzero_ps()}; }
LC_INLINE V16F splat16(float x) { return {_mm512_set1_ps(x)}; }
LC_INLINE V16F load16(const float* p) { return {_mm512_loadu_ps(p)}; }
LC_INLINE void store16(float* p, V16F a) { _mm512_storeu_ps(p, a.v); }
LC_INLINE V16F add16(V16F a, V16F b) { return {_mm512_add_ps(a.v, b.v)}; }
LC_INLINE V16F fused16(V16F a, V16F b, V16F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
LC_INLINE V16U load16(const uint32_t* p) { return {_mm512_loadu_si512(p)}; }
LC_INLINE V16U shift16(V16U a, int bits) { return {_mm512_srli_epi32(a.v, unsigned(bits))}; }
#else
struct V16F {
  V8F low, high;
};
struct V16U {
  V8U low, high;
};
LC_INLINE V16F zero16() { return {V8F{}, V8F{}}; }
LC_INLINE V16F splat16(float x) { return {splat8(x), splat8(x)}; }
LC_INLINE V16F load16(const float* p) { return {load<V8F>(p), load<V8F>(p + 8)}; }
LC_INLINE void store16(float* p, V16F a) { store(p, a.low), store(p + 8, a.high); }
LC_INLINE V16F add16(V16F a, V16F b) { return {a.low + b.low, a.high + b.high}; }
LC_INLINE V16F fused16(V16F a, V16F b, V16F c) { return {fused8(a.low, b.low, c.low), fused8(a.high, b.high, c.high)}; }
LC_INLINE V16U load16(const uint32_t* p) { return {load<V8U>(p), load<V8U>(p + 8)}; }
LC_INLINE V16U shift16(V16U a, int bits) { return {a.low >> bits, a.high >> bits}; }
#endif

// Eight bfloat16 numbers as float32.
LC_INLINE V8F widen_bfloat8(const uint16_t* p) {
#if defined(__AVX2__)
  return (V8F)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16);
#else
  return (V8F)(V8U{p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7]} << 16);
#endif
}

LC_INLINE V8F load8(const float* p) { return load<V8F>(p); }
LC_INLINE V8F load8(const uint16_t* p) { return widen_bfloat8(p); }
LC_INLINE V16F load16(const uint16_t* p) { // bfloat16
#if defined(LC_ONE_REGISTER)
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16))};
#else
  return {widen_bfloat8(p), widen_bfloat8(p + 8)};
#endif
}

// p[index] for each lane, where only the low 2, 3 or 4 bits of an index count for W = 4, 8 or 16; W floats are read.
// Bit 3 must be 0 for W = 8.
#if defined(LC_ONE_REGISTER)
template <int W> LC_INLINE V16F pick16(const float* p, V16U index) {
  if constexpr (W == 4) return {_mm512_permutevar_ps(_mm512_broadcast_f32x4(_mm_loadu_ps(p)), index.v)};
  if constexpr (W == 8) return {_mm512_permutexvar_ps(index.v, _mm512_broadcast_f32x8(_mm256_loadu_ps(p)))};
  if constexpr (W == 16) return {_mm512_permutexvar_ps(index.v, _mm512_loadu_ps(p))};
}
#elif defined(__AVX2__)
template <int W> LC_INLINE V16F pick16(const float* p, V16U index) {
  if constexpr (W == 4) {
    const __m256 w = _mm256_broadcast_ps((const __m128*)p);
    return {(V8F)_mm256_permutevar_ps(w, (__m256i)index.low), (V8F)_mm256_permutevar_ps(w, (__m256i)index.high)};
  }
  const V8F w = load<V8F>(p);
  const V16F low = {lookup8(w, index.low), lookup8(w, index.high)};
  if constexpr (W == 8) return low;
  const V8F v = load<V8F>(p + (W == 16 ? 8 : 0));
  return {select8(index.low << 28, lookup8(v, index.low), low.low),
          select8(index.high << 28, lookup8(v, index.high), low.high)};
}
#else
template <int W> __attribute__((noinline)) static V16F pick16(const float* p, V16U index) {
  V16F picked;
  for (int l = 0; l < 8; ++l) picked.low[l] = p[index.low[l] & (W - 1)];
  for (int l = 0; l < 8; ++l) picked.high[l] = p[index.high[l] & (W - 1)];
  return picked;
}
#endif

// Eight elements of x, by eight loads: 1.7 times as fast as a gather instruction on Zen, 0.18 ns an element. Four
// 16-bit indices come in one word, since loads are the limit.
LC_INLINE V8F pick_columns8(const float* x, const uint16_t* columns) {
#if defined(__BMI__) && defined(__x86_64__)
  uint64_t p, q;
  __builtin_memcpy(&p, columns, 8), __builtin_memcpy(&q, columns + 4, 8);
  const auto field = [](uint64_t v, int begin) { return _bextr_u64(v, unsigned(begin), 16); };
  return V8F{x[uint16_t(p)], x[field(p, 16)], x[field(p, 32)], x[p >> 48],
             x[uint16_t(q)], x[field(q, 16)], x[field(q, 32)], x[q >> 48]};
#else
  return V8F{x[columns[0]], x[columns[1]], x[columns[2]], x[columns[3]],
             x[columns[4]], x[columns[5]], x[columns[6]], x[columns[7]]};
#endif
}
LC_INLINE V8F pick_columns8(const float* x, const int32_t* columns) {
  return V8F{x[columns[0]], x[columns[1]], x[columns[2]], x[columns[3]],
             x[columns[4]], x[columns[5]], x[columns[6]], x[columns[7]]};
}

} // namespace lc::LC_ISA
