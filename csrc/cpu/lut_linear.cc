#include "../lut_linear.h"

#include "simd8.h"

namespace lc::LC_ISA {
namespace {

constexpr int kTailGroups = 10; // groups of 8 codes that the padded copy of a row's end may hold

// The codebook in registers where it fits: 2^B codewords, padded with zeros. Fewer than 8 are repeated, so that
// lookups need not mask the code.
template <int B> struct Table {
  static constexpr int kVectors = B <= 3 ? 1 : B <= 5 ? 1 << (B - 3) : 0;
  V8F v[kVectors ? kVectors : 1];
  float all[1 << B];

  Table(const float* codebook, int k) {
    for (int i = 0; i < 1 << B; ++i) all[i] = i < k ? codebook[i] : 0.0f;
    for (int j = 0; j < kVectors; ++j)
      for (int i = 0; i < 8; ++i) v[j][i] = all[(8 * j + i) & ((1 << B) - 1)];
  }
};

// Eight codes from `bits` bytes at p, in the low B bits of the lanes; what is above is undefined up to B = 4, zero from
// 5 on. Reads 4 bytes up to B = 4, else 8.
template <int B> LC_INLINE V8U codes8(const uint8_t* p) {
  const V8U lane = {0, 1, 2, 3, 4, 5, 6, 7};
  if constexpr (B <= 4) {
    uint32_t w;
    __builtin_memcpy(&w, p, 4);
    return (V8U{} + w) >> (lane * B);
  } else {
    uint64_t w;
    __builtin_memcpy(&w, p, 8);
#if defined(__AVX2__)
    if constexpr (B == 8) return (V8U)_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(int64_t(w)));
    // A code lies in two bytes: byte (lane * B) / 8 and the next.
    V8U pick = (lane * B) / 8;
    pick |= (pick + 1) << 8 | 0x80800000u;
    const V8U two = (V8U)_mm256_shuffle_epi8(_mm256_set1_epi64x(int64_t(w)), (__m256i)pick) >> (lane * B % 8);
    return two & ((1u << B) - 1);
#else
    V8U codes;
    for (int i = 0; i < 8; ++i) codes[i] = uint32_t(w >> (i * B)) & ((1u << B) - 1);
    return codes;
#endif
  }
}

template <int B> LC_INLINE V8F weights8(const uint8_t* p, const Table<B>& t) {
  const V8U code = codes8<B>(p);
  if constexpr (B <= 3) return lookup8(t.v[0], code);
  if constexpr (B == 4) return select8(code << 28, lookup8(t.v[1], code), lookup8(t.v[0], code));
  if constexpr (B == 5) {
    const V8F low = select8(code << 28, lookup8(t.v[1], code), lookup8(t.v[0], code));
    const V8F high = select8(code << 28, lookup8(t.v[3], code), lookup8(t.v[2], code));
    return select8(code << 27, high, low);
  }
#if defined(__AVX2__)
  return (V8F)_mm256_i32gather_ps(t.all, (__m256i)code, 4);
#else
  V8F w;
  for (int i = 0; i < 8; ++i) w[i] = t.all[code[i]];
  return w;
#endif
}

// How a row of codes is cut: `whole` groups of 8 codes that can be read in place with 8-byte loads, then a tail of
// fewer than 8 + bits bytes that must be copied to where there is room after it.
struct Split {
  int64_t bytes, whole, tail_groups, tail_bytes;
  Split(int64_t cols, int bits) {
    bytes = (cols * bits + 31) / 32 * 4;
    whole = bytes < 8 ? 0 : (bytes - 8) / bits + 1;
    if (whole > cols / 8) whole = cols / 8;
    tail_groups = (cols + 7) / 8 - whole;
    tail_bytes = bytes - whole * bits;
  }
};

struct Tail {
  uint8_t bytes[kTailGroups + 16];
  Tail(const uint8_t* row, const Split& s, int bits) : bytes{} {
    if (s.tail_bytes) __builtin_memcpy(bytes, row + s.whole * bits, s.tail_bytes);
  }
};

template <int B> void decode(const uint8_t* words, int64_t cols, const float* codebook, int k, int64_t begin,
                             int64_t end, float* weight) {
  const Table<B> t(codebook, k);
  const Split s(cols, B);
  for (int64_t o = begin; o < end; ++o) {
    const uint8_t* row = words + o * s.bytes;
    float* out = weight + o * cols;
    for (int64_t g = 0; g < s.whole; ++g) store(out + 8 * g, weights8<B>(row + g * B, t));
    const Tail tail(row, s, B);
    for (int64_t g = 0; g < s.tail_groups; ++g) {
      const int64_t at = 8 * (s.whole + g), left = cols - at < 8 ? cols - at : 8;
      store(out + at, weights8<B>(tail.bytes + g * B, t), left);
    }
  }
}

} // namespace

void lut_decode_range(const int32_t* words, int64_t cols, int bits, const float* codebook, int k, int64_t begin,
                      int64_t end, float* weight) {
  const auto run = bits == 1   ? decode<1>
                   : bits == 2 ? decode<2>
                   : bits == 3 ? decode<3>
                   : bits == 4 ? decode<4>
                   : bits == 5 ? decode<5>
                   : bits == 6 ? decode<6>
                   : bits == 7 ? decode<7>
                               : decode<8>;
  run((const uint8_t*)words, cols, codebook, k, begin, end, weight);
}

} // namespace lc::LC_ISA
