// lut_linear with 16-bit codewords and activations.
#include "lut_linear_tile.h"

#include "lut_linear_dot.h"
#include "lut_linear_rows.h"

namespace lc::LC_ISA {
namespace {

struct Int16 {
  typedef VI Acc;
  static constexpr int kColumns = 2;
  static constexpr bool kScaled = true;
  LC_INLINE VI madd(VI acc, VI u, VI x) { return dot16(acc, u, x); }
  LC_INLINE VF add(VF total, VI acc, const float* step) { return add_scaled(total, acc, *step); }
};

// Columns 2 j and 2 j + 1 are nibbles j and 4 + j of the row's 32 bits.
struct Nibbles16 : Int16 {
  static constexpr int kUnits = 4, kSteps = kGroup / 8;
#if defined(__AVX512BW__)
  __m512i table; // twice, so that the fifth bit of an index does not matter
  explicit Nibbles16(const int16_t* t) : table(_mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i*)t))) {}
  LC_INLINE_MEMBER void decode(const uint8_t* p, int, VI* u) const {
    const __m512i v = _mm512_loadu_si512(p);
    u[0] = (VI)_mm512_permutexvar_epi16(v, table);
    u[1] = (VI)_mm512_permutexvar_epi16(_mm512_srli_epi16(v, 4), table);
    u[2] = (VI)_mm512_permutexvar_epi16(_mm512_srli_epi16(v, 8), table);
    u[3] = (VI)_mm512_permutexvar_epi16(_mm512_srli_epi16(v, 12), table);
  }
#elif defined(__AVX2__) && LC_LANES == 8
  __m256i low, high; // bytes of the codewords
  explicit Nibbles16(const int16_t* t) {
    uint8_t bytes[2][16];
    for (int i = 0; i < 16; ++i) bytes[0][i] = uint8_t(t[i]), bytes[1][i] = uint8_t(t[i] >> 8);
    low = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)bytes[0]));
    high = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)bytes[1]));
  }
  // Every byte's codeword in two halves; the even bytes make one unit, the odd bytes the other.
  LC_INLINE_MEMBER void two(__m256i code, VI& even, VI& odd) const {
    const __m256i odd_bytes = _mm256_set1_epi16(short(0xff00));
    const __m256i l = _mm256_shuffle_epi8(low, code), h = _mm256_shuffle_epi8(high, code);
    even = (VI)_mm256_blendv_epi8(l, _mm256_slli_epi16(h, 8), odd_bytes);
    odd = (VI)_mm256_blendv_epi8(_mm256_srli_epi16(l, 8), h, odd_bytes);
  }
  LC_INLINE_MEMBER void decode(const uint8_t* p, int lane, VI* u) const {
    const __m256i v = _mm256_loadu_si256((const __m256i*)(p + 4 * lane)), mask = _mm256_set1_epi8(15);
    two(_mm256_and_si256(v, mask), u[0], u[2]);
    two(_mm256_and_si256(_mm256_srli_epi16(v, 4), mask), u[1], u[3]);
  }
#else
  const int16_t* table;
  explicit Nibbles16(const int16_t* t) : table(t) {}
  LC_INLINE_MEMBER void decode(const uint8_t* p, int lane, VI* u) const {
    const VU v = load<VU>(p + 4 * lane);
    for (int j = 0; j < 4; ++j)
      for (int l = 0; l < kLanes; ++l)
        u[j][l] =
            int32_t(uint32_t(uint16_t(table[v[l] >> (4 * j) & 15])) | uint32_t(table[v[l] >> (4 * j + 16) & 15]) << 16);
  }
#endif
};

// In each 16 bytes, 4 rows: row i's columns 0 and 1 are bytes 2 i and 2 i + 1, columns 2 and 3 the same 8 bytes on.
struct Bytes16 : Int16 {
  static constexpr int kUnits = 2, kSteps = kGroup / 4;
#if defined(__AVX512VBMI__)
  uint8_t bytes[2][256];
  Bytes256 low, high;
  explicit Bytes16(const int16_t* t) : low(split(t, bytes)), high(bytes[1]) {}
  static const uint8_t* split(const int16_t* t, uint8_t (*bytes)[256]) {
    for (int i = 0; i < 256; ++i) bytes[0][i] = uint8_t(t[i]), bytes[1][i] = uint8_t(t[i] >> 8);
    return bytes[0];
  }
  LC_INLINE_MEMBER void decode(const uint8_t* p, int, VI* u) const {
    const __m512i v = _mm512_loadu_si512(p), l = low(v), h = high(v);
    u[0] = (VI)_mm512_unpacklo_epi8(l, h);
    u[1] = (VI)_mm512_unpackhi_epi8(l, h);
  }
#else
  const int16_t* table;
  explicit Bytes16(const int16_t* t) : table(t) {}
  LC_INLINE_MEMBER void decode(const uint8_t* p, int lane, VI* u) const {
    for (int l = 0; l < kLanes; ++l) {
      const uint8_t* row = p + (lane + l) / 4 * 16 + (lane + l) % 4 * 2;
      for (int j = 0; j < 2; ++j)
        u[j][l] = int32_t(uint32_t(uint16_t(table[row[8 * j]])) | uint32_t(table[row[8 * j + 1]]) << 16);
    }
  }
#endif
};

} // namespace

int lut_panel() { return kPanel; }

void lut_int16_blocks(const LutMatrix& w, const int32_t* x, const float* step, const LutOutliers* outliers,
                      int64_t batch, const float* bias, int64_t begin, int64_t end, float* y) {
  const Packed packed{x, step, nullptr, outliers, batch, (w.cols + kGroup - 1) / kGroup};
  if (w.layout == LutLayout::row_major) return row_blocks<Int16>(w, packed, bias, begin, end, y);
  if (w.width == 4)
    shared_blocks(Nibbles16(w.table), w, packed, bias, begin, end, y);
  else
    shared_blocks(Bytes16(w.table), w, packed, bias, begin, end, y);
}

} // namespace lc::LC_ISA
