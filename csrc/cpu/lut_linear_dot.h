// Products of small integers in 32-bit lanes, and tables in registers, for lut_linear. x86 has instructions for both;
// the generic forms give the same integers.
#pragma once
#include "simd.h"

namespace lc::LC_ISA {
namespace {

// acc + a0 b0 + a1 b1, where lanes hold two int16 each. The sum must fit.
LC_INLINE VI dot16(VI acc, VI a, VI b) {
#if defined(__AVX512VNNI__)
  return (VI)_mm512_dpwssd_epi32((__m512i)acc, (__m512i)a, (__m512i)b);
#elif defined(__AVX512BW__)
  return acc + (VI)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__) && LC_LANES == 8
  return acc + (VI)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
  return acc + (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}

// acc + the four products of the bytes of a, 0 to 127, and of b, -127 to 127: pairs of them fit 16 bits.
LC_INLINE VI dot8(VI acc, VI a, VI b) {
#if defined(__AVX512VNNI__)
  return (VI)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)a, (__m512i)b);
#elif defined(__AVX512BW__)
  const __m512i pairs = _mm512_maddubs_epi16((__m512i)a, (__m512i)b);
  return acc + (VI)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
#elif defined(__AVX2__) && LC_LANES == 8
  const __m256i pairs = _mm256_maddubs_epi16((__m256i)a, (__m256i)b);
  return acc + (VI)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#else
  return acc + (a & 255) * (b << 24 >> 24) + (a >> 8 & 255) * (b << 16 >> 24) + (a >> 16 & 255) * (b << 8 >> 24) +
         (a >> 24 & 255) * (b >> 24);
#endif
}

// total + acc * step, rounded twice: the same on every instruction set.
LC_INLINE VF add_scaled(VF total, VI acc, float step) { return total + __builtin_convertvector(acc, VF) * splat(step); }

#if defined(__AVX512VBMI__)
// table[code] for each byte, from 256 bytes.
struct Bytes256 {
  __m512i t[4];
  static __m512i load64(const uint8_t* p) { return _mm512_loadu_si512(p); }
  explicit Bytes256(const uint8_t* p) : t{load64(p), load64(p + 64), load64(p + 128), load64(p + 192)} {}
  LC_INLINE_MEMBER __m512i operator()(__m512i code) const {
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(code), _mm512_permutex2var_epi8(t[0], code, t[1]),
                                  _mm512_permutex2var_epi8(t[2], code, t[3]));
  }
};
#endif

} // namespace
} // namespace lc::LC_ISA
