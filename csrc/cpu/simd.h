// Vectors for the CPU kernels, over the GNU vector types of GCC and Clang.
//
// Included only by csrc/cpu/*.cc, which are compiled once per instruction set with
//   LC_ISA    the namespace, for example avx2
//   LC_LANES  floats in a vector: 1 (scalar), 4 (neon), 8 (avx2), 16 (avx512, wide)
// Arithmetic, comparison (true is -1) and `mask ? a : b` are the compiler's own. Only what it lowers badly is written
// with intrinsics, each with the measured reason.
//
// No standard library templates here or in the kernels: an inline function compiled with AVX-512 flags may be the copy
// that the linker keeps for the whole program (tests/test_no_weak_symbols.py).
#pragma once
#include <stdint.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define LC_INLINE static inline __attribute__((always_inline))

namespace lc::LC_ISA {

constexpr int kLanes = LC_LANES;

typedef float VF __attribute__((vector_size(4 * kLanes)));
typedef int32_t VI __attribute__((vector_size(4 * kLanes)));
typedef uint32_t VU __attribute__((vector_size(4 * kLanes)));
typedef uint8_t VB __attribute__((vector_size(kLanes)));

LC_INLINE VI splat(int32_t x) { return VI{} + x; }
// By way of the bits: x + 0 in floats is an addition, which must be made, since it turns -0 into 0.
LC_INLINE VF splat(float x) {
  int32_t b;
  __builtin_memcpy(&b, &x, 4);
  return (VF)splat(b);
}

template <class V, class T> LC_INLINE V load(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class V, class T> LC_INLINE void store(T* p, V v) { __builtin_memcpy(p, &v, sizeof v); }

// The last n < kLanes items; lanes past them read as zero and are not written.
template <class V, class T> LC_INLINE V load(const T* p, int64_t n) {
  V v{};
  __builtin_memcpy(&v, p, n * sizeof(T));
  return v;
}
template <class V, class T> LC_INLINE void store(T* p, V v, int64_t n) { __builtin_memcpy(p, &v, n * sizeof(T)); }

LC_INLINE VI bits(VF x) { return (VI)x; }
LC_INLINE VF as_float(VI x) { return (VF)x; }
LC_INLINE VF abs(VF x) { return as_float(bits(x) & 0x7fffffff); }
LC_INLINE VF min(VF a, VF b) { return a < b ? a : b; }
LC_INLINE VF max(VF a, VF b) { return a > b ? a : b; }

// a * b + c with one rounding where the hardware has it: for reductions, which are not promised to agree bit for bit
// across instruction sets. The files are compiled with -ffp-contract=off, so everything else does agree.
LC_INLINE VF fma(VF a, VF b, VF c) {
#if defined(__AVX512F__) && LC_LANES == 16
  return (VF)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__) && LC_LANES == 8
  return (VF)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

// a b + c with one rounding, on every instruction set. Not inlined where it is a loop: GCC 12 fails on that in `wide`.
#if (defined(__AVX512F__) && LC_LANES == 16) || (defined(__FMA__) && LC_LANES == 8)
LC_INLINE VF fma_exact(VF a, VF b, VF c) { return fma(a, b, c); }
#else
__attribute__((noinline)) [[maybe_unused]] static VF fma_exact(VF a, VF b, VF c) {
  for (int l = 0; l < kLanes; ++l) c[l] = __builtin_fmaf(a[l], b[l], c[l]);
  return c;
}
#endif

LC_INLINE float sum(VF v) {
  float s = 0;
  for (int i = 0; i < kLanes; ++i) s += v[i];
  return s;
}

LC_INLINE bool any(VI mask) {
#if defined(__AVX512F__) && LC_LANES == 16
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__) && LC_LANES == 8
  return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#else
  int32_t seen = 0;
  for (int i = 0; i < kLanes; ++i) seen |= mask[i];
  return seen != 0;
#endif
}

// Bit i is set where lane i of the mask is true.
LC_INLINE uint32_t lane_bits(VI mask) {
#if defined(__AVX512F__) && LC_LANES == 16
  return _mm512_movepi32_mask((__m512i)mask);
#elif defined(__AVX2__) && LC_LANES == 8
  return uint32_t(_mm256_movemask_ps((__m256)mask));
#else
  uint32_t b = 0;
  for (int i = 0; i < kLanes; ++i) b |= uint32_t(mask[i] & 1) << i;
  return b;
#endif
}

// The low byte of each lane. GCC 12 lowers __builtin_convertvector from int32 to uint8 lane by lane on AVX2.
LC_INLINE VB low_bytes(VI v) {
#if defined(__AVX512F__) && LC_LANES == 16
  return (VB)_mm512_cvtepi32_epi8((__m512i)v);
#elif defined(__AVX2__) && LC_LANES == 8
  const __m256i gather = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, //
                                          -1, -1, -1, -1, 0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m256i b = _mm256_shuffle_epi8((__m256i)v, gather);
  const __m128i r = _mm_or_si128(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));
  VB out;
  __builtin_memcpy(&out, &r, sizeof out);
  return out;
#else
  return __builtin_convertvector((VU)v, VB);
#endif
}

// The low `bits` bits of the eight bytes of v, side by side: mask holds those bits of each byte. The general form takes
// three rounds of shifts; pext and pdep are one instruction.
LC_INLINE uint64_t gather_bits(uint64_t v, uint64_t mask, int bits) {
#if defined(__BMI2__)
  (void)bits;
  return _pext_u64(v, mask);
#else
  v &= mask;
  v = (v & 0x00ff00ff00ff00ff) | ((v & 0xff00ff00ff00ff00) >> (8 - bits));
  v = (v & 0x0000ffff0000ffff) | ((v & 0xffff0000ffff0000) >> (16 - 2 * bits));
  return (v & 0xffffffff) | (v >> 32 << 4 * bits);
#endif
}

// The inverse.
LC_INLINE uint64_t spread_bits(uint64_t v, uint64_t mask, int bits) {
#if defined(__BMI2__)
  (void)bits;
  return _pdep_u64(v, mask);
#else
  (void)mask;
  v = (v & ((uint64_t(1) << 4 * bits) - 1)) | (v >> 4 * bits << 32);
  const uint64_t pairs = 0x0000000100000001 * ((uint64_t(1) << 2 * bits) - 1);
  v = (v & pairs) | ((v >> 2 * bits & pairs) << 16);
  const uint64_t singles = 0x0001000100010001 * ((uint64_t(1) << bits) - 1);
  return (v & singles) | ((v >> bits & singles) << 8);
#endif
}

// A store past the caches, p aligned to the vector; stream_fence() before another thread may read. Writing 40 MB so
// takes 2.4 ms where plain stores, which read each line first, take 3.5.
// A store past the caches, p aligned to the vector; stream_fence() before another thread may read. Copying 40 MB
// takes 2.6 ms so, and 3.5 with plain stores, which read each line first.
template <class T> LC_INLINE void stream(T* p, VI v) {
#if defined(__AVX512F__) && LC_LANES == 16
  _mm512_stream_si512((__m512i*)p, (__m512i)v);
#elif defined(__AVX2__) && LC_LANES == 8
  _mm256_stream_si256((__m256i*)p, (__m256i)v);
#else
  store(p, v);
#endif
}

LC_INLINE void stream_fence() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

} // namespace lc::LC_ISA
