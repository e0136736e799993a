// The nearest codeword and its index, eight values at a time, in the order of assign.h: the lower one in a tie.
#pragma once
#include "../assign.h"
#include "simd8.h"

namespace lc::LC_ISA {

typedef float V4F __attribute__((vector_size(16)));
typedef double V4D __attribute__((vector_size(32)));
typedef int64_t V4L __attribute__((vector_size(32)));

// Eight doubles. GCC 12 keeps vectors of 64 bytes in memory on AVX2, which was twice as slow.
struct D8 {
  V4D low, high;
};
struct L8 { // a mask of them
  V4L low, high;
};

LC_INLINE D8 splat_d8(double d) { return {V4D{} + d, V4D{} + d}; }
// GCC 12 widens by halves of 128 bits: the pass over the data took 1.7 times as long.
LC_INLINE D8 widen(V8F v) {
#if defined(__AVX2__)
  const __m256 m = (__m256)v;
  return {(V4D)_mm256_cvtps_pd(_mm256_castps256_ps128(m)), (V4D)_mm256_cvtps_pd(_mm256_extractf128_ps(m, 1))};
#else
  return {__builtin_convertvector(__builtin_shufflevector(v, v, 0, 1, 2, 3), V4D),
          __builtin_convertvector(__builtin_shufflevector(v, v, 4, 5, 6, 7), V4D)};
#endif
}
LC_INLINE D8 operator+(D8 a, D8 b) { return {a.low + b.low, a.high + b.high}; }
LC_INLINE D8 operator-(D8 a, D8 b) { return {a.low - b.low, a.high - b.high}; }
LC_INLINE D8 operator*(D8 a, D8 b) { return {a.low * b.low, a.high * b.high}; }
LC_INLINE L8 operator>=(D8 a, D8 b) { return {a.low >= b.low, a.high >= b.high}; }
LC_INLINE L8 operator>(D8 a, D8 b) { return {a.low > b.low, a.high > b.high}; }
LC_INLINE L8 operator&(L8 a, L8 b) { return {a.low & b.low, a.high & b.high}; }
LC_INLINE D8 where(L8 mask, D8 v) { return {(V4D)(mask.low & (V4L)v.low), (V4D)(mask.high & (V4L)v.high)}; }
LC_INLINE L8 operator|(L8 a, L8 b) { return {a.low | b.low, a.high | b.high}; }
LC_INLINE L8 operator~(L8 a) { return {~a.low, ~a.high}; }

// In a fixed order.
LC_INLINE double sum8(D8 v) {
  const V4D s = v.low + v.high;
  return (s[0] + s[1]) + (s[2] + s[3]);
}

// Bit l is set where lane l of the mask is true. GCC 12 takes masks apart lane by lane.
LC_INLINE uint32_t lane_bits8(L8 mask) {
#if defined(__AVX2__)
  return uint32_t(_mm256_movemask_pd((__m256d)mask.low)) | uint32_t(_mm256_movemask_pd((__m256d)mask.high)) << 4;
#else
  uint32_t b = 0;
  for (int l = 0; l < 4; ++l) b |= uint32_t(mask.low[l] & 1) << l | uint32_t(mask.high[l] & 1) << (l + 4);
  return b;
#endif
}

LC_INLINE V8I not_finite(V8F v) { return ~(V8I{} + 0x7f800000 > ((V8I)v & 0x7fffffff)); }

LC_INLINE bool any8(V8I mask) {
  int32_t seen = 0;
  for (int l = 0; l < 8; ++l) seen |= mask[l];
  return seen != 0;
}

// The low bytes of eight lanes, lane 0 lowest. GCC 12 narrows lane by lane.
LC_INLINE uint64_t bytes8(V8I v) {
#if defined(__AVX2__)
  const __m256i gather = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, //
                                          0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m256i b = _mm256_shuffle_epi8((__m256i)v, gather);
  return uint32_t(_mm256_extract_epi32(b, 0)) | uint64_t(uint32_t(_mm256_extract_epi32(b, 4))) << 32;
#else
  uint64_t b = 0;
  for (int l = 0; l < 8; ++l) b |= uint64_t(uint8_t(v[l])) << (8 * l);
  return b;
#endif
}

// The same the other way: all ones in byte l where bit l is set.
LC_INLINE uint64_t spread8(uint32_t bits) {
  const uint64_t one =
      0x0101010101010101u & ((((bits & 0xffu) * 0x0101010101010101u & 0x8040201008040201u) + 0x7f7f7f7f7f7f7f7fu) >> 7);
  return one * 0xff;
}

constexpr int kNearestBlock = 512;

// At most 4 codewords: a chain of selects.
struct Chain {
  V8F mid[3], word[4];

  __attribute__((always_inline)) Chain(const float* mids, const float* codebook, int k) {
    for (int j = 0; j < 4; ++j) {
      if (j < 3) mid[j] = splat8(j + 1 < k ? mids[j] : __builtin_inff());
      word[j] = splat8(codebook[j < k ? j : k - 1]);
    }
  }
  __attribute__((always_inline)) V8F operator()(V8F v, V8I* code) const {
    V8F q = word[0];
    for (int j = 0; j < 3; ++j) {
      const V8I above = v > mid[j];
      *code -= above;
      q = above ? word[j + 1] : q;
    }
    return q;
  }
};

// At most 16 codewords: a binary search with the midpoints in registers.
struct Tree {
  V8F root, quarters, eighths, leaves, low, high;

  __attribute__((always_inline)) Tree(const float* mids, const float* codebook, int k) {
    const auto mid = [&](int j) { return j + 1 < k ? mids[j] : __builtin_inff(); };
    root = splat8(mid(7));
    for (int j = 0; j < 8; ++j) {
      quarters[j] = mid(4 * (2 * (j & 1) + 1) - 1);
      eighths[j] = mid(2 * (2 * (j & 3) + 1) - 1);
      leaves[j] = mid(2 * j);
      low[j] = codebook[j < k ? j : k - 1], high[j] = codebook[j + 8 < k ? j + 8 : k - 1];
    }
  }
  __attribute__((always_inline)) V8F operator()(V8F v, V8I* code) const {
    V8I at = -V8I(v > root);
    at += at - V8I(v > lookup8(quarters, (V8U)at));
    at += at - V8I(v > lookup8(eighths, (V8U)at));
    at += at - V8I(v > lookup8(leaves, (V8U)at));
    *code = at;
    return select8((V8U)at << 28, lookup8(high, (V8U)at), lookup8(low, (V8U)at));
  }
};

template <class Search, class F>
LC_INLINE void for_each_in_registers(const float* x, int64_t n, float first, const Search& search, const F& f) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const V8F v = load<V8F>(x + i);
    V8I code{};
    const V8F q = search(v, &code);
    f(i, 8, v, q, bytes8(code));
  }
  if (i < n) {
    V8F v = splat8(first);
    __builtin_memcpy(&v, x + i, size_t(n - i) * 4);
    V8I code{};
    const V8F q = search(v, &code);
    f(i, n - i, v, q, bytes8(code));
  }
}

// codebook[code] for the eight bytes of codes.
LC_INLINE V8F look_up8(const float* codebook, uint64_t codes) {
#if defined(__AVX2__)
  return (V8F)_mm256_i32gather_ps(codebook, _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(int64_t(codes))), 4);
#else
  V8F q;
  for (int l = 0; l < 8; ++l) q[l] = codebook[codes >> (8 * l) & 255];
  return q;
#endif
}

template <class F> LC_INLINE void for_each_searched(const float* x, int64_t n, const float* mids, const float* codebook,
                                                    int k, const F& f) {
  for (int64_t start = 0; start < n; start += kNearestBlock) {
    const int64_t end = start + kNearestBlock < n ? start + kNearestBlock : n;
    uint8_t block[kNearestBlock] = {};
    assign_range(x + start, end - start, mids, k, block);
    const auto one = [&](int64_t i, int64_t left) __attribute__((always_inline)) {
      V8F v = splat8(codebook[0]);
      __builtin_memcpy(&v, x + i, size_t(left) * 4);
      uint64_t codes;
      __builtin_memcpy(&codes, block + (i - start), 8);
      f(i, left, v, look_up8(codebook, codes), codes);
    };
    int64_t i = start;
    for (; i + 8 <= end; i += 8) one(i, 8);
    if (i < end) one(i, end - i);
  }
}

// f(i, left, x, q, codes) for blocks of eight values, of which `left` are there; codes are eight bytes. Lanes past the
// end hold the first codeword, whose error is zero.
template <class F> LC_INLINE void for_each_nearest(const float* x, int64_t n, const float* mids, const float* codebook,
                                                   int k, const F& f) {
  if (k <= 4)
    for_each_in_registers(x, n, codebook[0], Chain(mids, codebook, k), f);
  else if (k <= 16)
    for_each_in_registers(x, n, codebook[0], Tree(mids, codebook, k), f);
  else
    for_each_searched(x, n, mids, codebook, k, f);
}

} // namespace lc::LC_ISA
