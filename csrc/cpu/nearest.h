// The nearest codeword and its index, eight values at a time, in the order of assign.h: the lower one in a tie.
#pragma once
#include "../assign.h"
#include "simd8.h"

namespace lc::LC_ISA {

typedef double V8D __attribute__((vector_size(64)));
typedef int64_t V8L __attribute__((vector_size(64)));
typedef uint8_t V8B __attribute__((vector_size(8)));

LC_INLINE V8D widen(V8F v) { return __builtin_convertvector(v, V8D); }

// Sums of eight lanes in a fixed order.
LC_INLINE double sum8(V8D v) { return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7])); }

constexpr int kCounted = 16; // codewords up to which a chain of selects beats a search and a look-up
constexpr int kNearestBlock = 512;

// f(i, left, x, q, codes) for blocks of eight values, of which `left` are there; writes the codes. Lanes past the end
// hold the first codeword, whose error is zero.
template <class F> LC_INLINE void for_each_nearest(const float* x, int64_t n, const float* mids, const float* codebook,
                                                   int k, uint8_t* codes, const F& f) {
  if (k > kCounted) {
    for (int64_t start = 0; start < n; start += kNearestBlock) {
      const int64_t end = start + kNearestBlock < n ? start + kNearestBlock : n;
      uint8_t block[kNearestBlock];
      assign_range(x + start, end - start, mids, k, block);
      for (int64_t i = start; i < end; i += 8) {
        const int64_t left = end - i < 8 ? end - i : 8;
        V8F q = splat8(codebook[0]), v = q;
        __builtin_memcpy(&v, x + i, size_t(left) * 4);
        for (int64_t l = 0; l < left; ++l) q[l] = codebook[block[i - start + l]];
        if (codes) __builtin_memcpy(codes + i, block + (i - start), size_t(left));
        f(i, left, v, q, block + (i - start));
      }
    }
    return;
  }
  const auto one = [&](int64_t i, int64_t left, V8F v) __attribute__((always_inline)) {
    V8F q = splat8(codebook[0]);
    V8I code{};
    for (int j = 0; j + 1 < k; ++j) {
      const V8I above = v > splat8(mids[j]);
      code -= above;
      q = above ? splat8(codebook[j + 1]) : q;
    }
    const V8B narrow = __builtin_convertvector((V8U)code, V8B);
    uint8_t block[8];
    __builtin_memcpy(block, &narrow, 8);
    if (codes) __builtin_memcpy(codes + i, block, size_t(left));
    f(i, left, v, q, block);
  };
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) one(i, 8, load<V8F>(x + i));
  if (i < n) {
    V8F v = splat8(codebook[0]);
    __builtin_memcpy(&v, x + i, size_t(n - i) * 4);
    one(i, n - i, v);
  }
}

LC_INLINE V8I not_finite(V8F v) { return ~(V8I{} + 0x7f800000 > ((V8I)v & 0x7fffffff)); }

LC_INLINE bool any8(V8I mask) {
  int32_t seen = 0;
  for (int l = 0; l < 8; ++l) seen |= mask[l];
  return seen != 0;
}

// Bit l is set where lane l of the mask is true. GCC 12 takes 8-lane masks of doubles apart lane by lane.
LC_INLINE uint32_t lane_bits8(V8L mask) {
#if defined(__AVX2__)
  const uint32_t low = uint32_t(_mm256_movemask_pd((__m256d)__builtin_shufflevector(mask, mask, 0, 1, 2, 3)));
  return low | uint32_t(_mm256_movemask_pd((__m256d)__builtin_shufflevector(mask, mask, 4, 5, 6, 7))) << 4;
#else
  uint32_t b = 0;
  for (int l = 0; l < 8; ++l) b |= uint32_t(mask[l] & 1) << l;
  return b;
#endif
}

} // namespace lc::LC_ISA
