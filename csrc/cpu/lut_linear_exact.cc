// lut_linear in float32.
#include "lut_linear_tile.h"

#include "lut_linear_dot.h"
#include "lut_linear_rows.h"

namespace lc::LC_ISA {
namespace {

struct Exact {
  typedef VF Acc;
  static constexpr int kColumns = 1;
  static constexpr bool kScaled = false;
  LC_INLINE VF madd(VF acc, VI u, VI x) { return fma_exact((VF)u, (VF)x, acc); }
  LC_INLINE VF add(VF total, VF acc, const float*) { return total + acc; }
};

// Column j is at bit B j of the row's 32 bits.
template <int B> struct Bits : Exact {
  static constexpr int kUnits = 32 / B, kSteps = kExactBlock / kUnits;
  float all[16];
#if defined(__AVX512F__)
  __m512 table;
  explicit Bits(const float* codebook) {
    repeat(codebook);
    table = _mm512_loadu_ps(all);
  }
  LC_INLINE_MEMBER VI at(VU v) const { return (VI)_mm512_permutexvar_ps((__m512i)v, table); }
#elif defined(__AVX2__) && LC_LANES == 8
  __m256 table, high;
  explicit Bits(const float* codebook) {
    repeat(codebook);
    table = _mm256_loadu_ps(all), high = _mm256_loadu_ps(all + 8);
  }
  LC_INLINE_MEMBER VI at(VU v) const {
    if constexpr (B <= 2) return (VI)_mm256_permutevar_ps(table, (__m256i)v);
    return (VI)_mm256_blendv_ps(_mm256_permutevar8x32_ps(table, (__m256i)v), _mm256_permutevar8x32_ps(high, (__m256i)v),
                                _mm256_castsi256_ps(_mm256_slli_epi32((__m256i)v, 28)));
  }
#else
  explicit Bits(const float* codebook) { repeat(codebook); }
  LC_INLINE_MEMBER VI at(VU v) const {
    VF r;
    for (int l = 0; l < kLanes; ++l) r[l] = all[v[l] & 15];
    return (VI)r;
  }
#endif
  // Codebooks of less than 16 again and again, so that the bits above a code do not matter.
  void repeat(const float* codebook) {
    for (int i = 0; i < 16; ++i) all[i] = codebook[i & ((1 << B) - 1)];
  }
  LC_INLINE_MEMBER void decode(const uint8_t* p, int lane, VI* u) const {
    const VU v = load<VU>(p + 4 * lane);
#pragma GCC unroll 32
    for (int j = 0; j < kUnits; ++j) u[j] = at(v >> (B * j));
  }
};

// In each 16 bytes, 4 rows: row i's column c is byte 4 c + i.
struct Bytes : Exact {
  static constexpr int kUnits = 4, kSteps = kExactBlock / 4;
#if defined(__AVX512VBMI__)
  uint8_t bytes[4][256];
  Bytes256 plane[4]; // byte i of the codewords
  explicit Bytes(const float* codebook)
      : plane{Bytes256(split(codebook, bytes)), Bytes256(bytes[1]), Bytes256(bytes[2]), Bytes256(bytes[3])} {}
  static const uint8_t* split(const float* codebook, uint8_t (*bytes)[256]) {
    for (int i = 0; i < 1024; ++i) bytes[i % 4][i / 4] = ((const uint8_t*)codebook)[i];
    return bytes[0];
  }
  LC_INLINE_MEMBER void decode(const uint8_t* p, int, VI* u) const {
    const __m512i v = _mm512_loadu_si512(p), b0 = plane[0](v), b1 = plane[1](v), b2 = plane[2](v), b3 = plane[3](v);
    const __m512i low0 = _mm512_unpacklo_epi8(b0, b1), low1 = _mm512_unpackhi_epi8(b0, b1);
    const __m512i high0 = _mm512_unpacklo_epi8(b2, b3), high1 = _mm512_unpackhi_epi8(b2, b3);
    u[0] = (VI)_mm512_unpacklo_epi16(low0, high0);
    u[1] = (VI)_mm512_unpackhi_epi16(low0, high0);
    u[2] = (VI)_mm512_unpacklo_epi16(low1, high1);
    u[3] = (VI)_mm512_unpackhi_epi16(low1, high1);
  }
#else
  const float* table;
  explicit Bytes(const float* codebook) : table(codebook) {}
  LC_INLINE_MEMBER void decode(const uint8_t* p, int lane, VI* u) const {
    for (int j = 0; j < 4; ++j) {
      VF r;
      for (int l = 0; l < kLanes; ++l) r[l] = table[p[(lane + l) / 4 * 16 + 4 * j + (lane + l) % 4]];
      u[j] = (VI)r;
    }
  }
#endif
};

} // namespace

void lut_exact_blocks(const LutMatrix& w, const int32_t* x, int64_t batch, const float* bias, int64_t begin,
                      int64_t end, float* y) {
  const Packed packed{x, nullptr, nullptr, nullptr, batch, 0};
  if (w.layout == LutLayout::row_major) return row_blocks<Exact>(w, packed, bias, begin, end, y);
  if (w.width == 8) return shared_blocks(Bytes(w.codebook), w, packed, bias, begin, end, y);
  if (w.width == 4) return shared_blocks(Bits<4>(w.codebook), w, packed, bias, begin, end, y);
  if (w.width == 2) return shared_blocks(Bits<2>(w.codebook), w, packed, bias, begin, end, y);
  shared_blocks(Bits<1>(w.codebook), w, packed, bias, begin, end, y);
}

} // namespace lc::LC_ISA
