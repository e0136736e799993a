// lut_linear with 8-bit codewords and activations.
#include "lut_linear_tile.h"

#include "lut_linear_dot.h"
#include "lut_linear_rows.h"

namespace lc::LC_ISA {
namespace {

struct Int8 {
  typedef VI Acc;
  static constexpr int kColumns = 4;
  static constexpr bool kScaled = true;
  LC_INLINE VI madd(VI acc, VI u, VI x) { return dot8(acc, u, x); }
  LC_INLINE VF add(VF total, VI acc, const float* step) { return add_scaled(total, acc, *step); }
};

// Columns 4 j + b are at bit B j of byte b of the row's 32 bits.
template <int B> struct Bits8 : Int8 {
  static constexpr int kUnits = 8 / B, kSteps = kGroup / (32 / B);
  uint8_t bytes[16]; // codebooks of less than 16 again and again, so that the bits above a code do not matter
  explicit Bits8(const int16_t* t) {
    for (int i = 0; i < 16; ++i) bytes[i] = uint8_t(t[i & ((1 << B) - 1)]);
#if defined(__AVX512BW__)
    table = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)bytes));
#elif defined(__AVX2__) && LC_LANES == 8
    table = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)bytes));
#endif
  }
#if defined(__AVX512BW__)
  __m512i table;
  LC_INLINE_MEMBER void decode(const uint8_t* p, int, VI* u) const {
    const __m512i v = _mm512_loadu_si512(p), mask = _mm512_set1_epi8(15);
#pragma GCC unroll 4
    for (int j = 0; j < kUnits; ++j)
      u[j] = (VI)_mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(v, B * j), mask));
  }
#elif defined(__AVX2__) && LC_LANES == 8
  __m256i table;
  LC_INLINE_MEMBER void decode(const uint8_t* p, int lane, VI* u) const {
    const __m256i v = _mm256_loadu_si256((const __m256i*)(p + 4 * lane)), mask = _mm256_set1_epi8(15);
#pragma GCC unroll 4
    for (int j = 0; j < kUnits; ++j)
      u[j] = (VI)_mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(v, B * j), mask));
  }
#else
  LC_INLINE_MEMBER void decode(const uint8_t* p, int lane, VI* u) const {
    const VU v = load<VU>(p + 4 * lane);
    for (int j = 0; j < kUnits; ++j)
      for (int l = 0; l < kLanes; ++l) {
        uint32_t four = 0;
        for (int b = 0; b < 4; ++b) four |= uint32_t(bytes[v[l] >> (8 * b + B * j) & 15]) << (8 * b);
        u[j][l] = int32_t(four);
      }
  }
#endif
};

// Not codes, but codewords: the four columns of a row side by side.
struct Bytes8 : Int8 {
  static constexpr int kUnits = 1, kSteps = kGroup / 4;
  LC_INLINE_MEMBER void decode(const uint8_t* p, int lane, VI* u) const { u[0] = load<VI>(p + 4 * lane); }
};

} // namespace

void lut_int8_blocks(const LutMatrix& w, const int32_t* x, const float* step, const float* sum,
                     const LutOutliers* outliers, int64_t batch, const float* bias, int64_t begin, int64_t end,
                     float* y) {
  const Packed packed{x, step, sum, outliers, batch, (w.cols + kGroup - 1) / kGroup};
  if (w.layout == LutLayout::row_major) return row_blocks<Int8>(w, packed, bias, begin, end, y);
  if (w.width == 2) return shared_blocks(Bits8<2>(w.table), w, packed, bias, begin, end, y);
  if (w.width == 4) return shared_blocks(Bits8<4>(w.table), w, packed, bias, begin, end, y);
  shared_blocks(Bytes8(), w, packed, bias, begin, end, y);
}

} // namespace lc::LC_ISA
