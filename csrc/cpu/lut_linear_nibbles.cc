// lut_linear with 1 and 2 bits, without multiplications: x and the codebook make a table of the 16 sums that a nibble
// of 4 or 2 columns can have; then a nibble costs a lookup and an addition for every row.
#include "lut_linear_tile.h"

#include "lut_linear_dot.h"

namespace lc::LC_ISA {
namespace {

struct Sums {
  static constexpr bool kScaled = false;
};

#if defined(__AVX512BW__)
constexpr LutLayout kLayout = LutLayout::words;
constexpr int kRows = 8; // of x at a time: their sums are in registers
#else
constexpr LutLayout kLayout = LutLayout::nibbles;
constexpr int kRows = 2;
#endif

} // namespace

void lut_nibble_tables(const float* x, int64_t cols, int width, const float* codebook, int64_t begin, int64_t end,
                       int16_t* tables, int64_t stride, float* step) {
  typedef float V16F __attribute__((vector_size(64)));
  typedef int32_t V16I __attribute__((vector_size(64)));
  const int per = 4 / width;
  V16F word[4]; // of the nibble's columns
  for (int c = 0; c < per; ++c)
    for (int i = 0; i < 16; ++i) word[c][i] = codebook[i >> (width * c) & ((1 << width) - 1)];
  const V16F magic = V16F{} + 12582912.0f; // 1.5 * 2^23: adding it rounds to an integer
  for (int64_t g = begin; g < end; g += kSumNibbles, ++step) {
    const int count = int(end - g < kSumNibbles ? end - g : kSumNibbles);
    V16F sums[kSumNibbles];
    V16I top{};
    for (int n = 0; n < count; ++n) {
      const int64_t at = (g + n) * per;
      sums[n] = V16F{};
      for (int c = 0; c < per && at + c < cols; ++c) sums[n] += word[c] * x[at + c];
      const V16I size = (V16I)sums[n] & 0x7fffffff;
      top = size > top ? size : top;
    }
    int32_t most = 0;
    for (int i = 0; i < 16; ++i) most = top[i] > most ? top[i] : most;
    float amax;
    __builtin_memcpy(&amax, &most, 4);
    const bool finite = most <= 0x7f7fffff;
    const float raise = amax < 0x1p-60f ? 0x1p80f : 1.0f; // so that no reciprocal is infinite
    const float by = finite && most ? float(kMaxSum) / (amax * raise) : 0.0f;
    *step = finite ? amax * raise / float(kMaxSum) / raise : __builtin_nanf("");
    for (int n = 0; n < count; ++n) {
      int16_t* out = tables + (g + n - begin) * stride;
      const V16I q = finite ? (V16I)(sums[n] * raise * by + magic) - (V16I)magic : V16I{};
#if defined(__AVX512BW__) // GCC 12 gets the loop over the lanes wrong
      _mm256_storeu_si256((__m256i*)out, _mm512_cvtepi32_epi16((__m512i)q));
#else
      uint8_t* bytes = (uint8_t*)out;
      for (int i = 0; i < 16; ++i) bytes[i] = uint8_t(q[i]), bytes[16 + i] = uint8_t(q[i] >> 8);
#endif
    }
  }
}

#if defined(__AVX512BW__)

namespace {

typedef uint16_t Words __attribute__((vector_size(64)));

// 16 rows of `sums`, as integers, times the step.
LC_INLINE void add_to(float* total, __m256i sums, float step) {
  store(total, add_scaled(load<VF>(total), (VI)_mm512_cvtepi16_epi32(sums), step));
}

// Four nibbles of each of 64 rows are two vectors of codes; M rows of x.
template <int M> void block(const uint8_t* codes, int64_t nibbles, const int16_t* tables, const float* step,
                            int64_t steps, float* total) {
  for (int m = 0; m < M; ++m) __builtin_memset(total + m * kLutRows, 0, kLutRows * sizeof(float));
  for (int64_t g = 0; g < nibbles; g += kSumNibbles, ++step) {
    __m512i sum[M][2] = {};
    const int64_t end = g + kSumNibbles < nibbles ? g + kSumNibbles : nibbles;
    for (int64_t n = g; n < end; n += 4) {
      const __m512i low = _mm512_loadu_si512(codes + n * 32), high = _mm512_loadu_si512(codes + n * 32 + 64);
      const int16_t* table = tables + n * M * 16;
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const __m512i a = (__m512i)((Words)low >> 4 * j), b = (__m512i)((Words)high >> 4 * j);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
          // Twice, so that the fifth bit of an index does not matter.
          const __m512i t = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i*)(table + (j * M + m) * 16)));
          sum[m][0] = _mm512_add_epi16(sum[m][0], _mm512_permutexvar_epi16(a, t));
          sum[m][1] = _mm512_add_epi16(sum[m][1], _mm512_permutexvar_epi16(b, t));
          // GCC would add the four first, and spill.
          if (M > 1) asm("" : "+v"(sum[m][0]), "+v"(sum[m][1]));
        }
      }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
      for (int h = 0; h < 2; ++h) {
        float* at = total + m * kLutRows + 32 * h;
        add_to(at, _mm512_castsi512_si256(sum[m][h]), step[m * steps]);
        add_to(at + 16, _mm512_extracti64x4_epi64(sum[m][h], 1), step[m * steps]);
      }
  }
}

#elif defined(__AVX2__) && LC_LANES == 8

namespace {

// 8 rows, 0 .. 3 and `apart` .. apart + 3, of 16-bit sums in the order in which bytes are unpacked.
LC_INLINE void add_to(float* total, __m256i sums, float step) {
  const VI first = (VI)_mm256_cvtepi16_epi32(_mm256_castsi256_si128(sums));
  const VI second = (VI)_mm256_cvtepi16_epi32(_mm256_extracti128_si256(sums, 1));
  store(total, add_scaled(load<VF>(total), first, step));
  store(total + 16, add_scaled(load<VF>(total + 16), second, step));
}

template <int M> void block(const uint8_t* codes, int64_t nibbles, const int16_t* tables, const float* step,
                            int64_t steps, float* total) {
  for (int m = 0; m < M; ++m) __builtin_memset(total + m * kLutRows, 0, kLutRows * sizeof(float));
  const __m256i mask = _mm256_set1_epi8(15);
  for (int64_t g = 0; g < nibbles; g += kSumNibbles, ++step) {
    __m256i sum[M][4] = {};
    const int64_t end = g + kSumNibbles < nibbles ? g + kSumNibbles : nibbles;
    for (int64_t n = g; n < end; ++n) {
      const __m256i v = _mm256_loadu_si256((const __m256i*)(codes + n * 32));
      const __m256i a = _mm256_and_si256(v, mask), b = _mm256_and_si256(_mm256_srli_epi16(v, 4), mask);
#pragma GCC unroll 2
      for (int m = 0; m < M; ++m) {
        const __m128i* t = (const __m128i*)(tables + (n * M + m) * 16);
        const __m256i low = _mm256_broadcastsi128_si256(_mm_loadu_si128(t));
        const __m256i high = _mm256_broadcastsi128_si256(_mm_loadu_si128(t + 1));
        __m256i l = _mm256_shuffle_epi8(low, a), h = _mm256_shuffle_epi8(high, a);
        sum[m][0] = _mm256_add_epi16(sum[m][0], _mm256_unpacklo_epi8(l, h));
        sum[m][1] = _mm256_add_epi16(sum[m][1], _mm256_unpackhi_epi8(l, h));
        l = _mm256_shuffle_epi8(low, b), h = _mm256_shuffle_epi8(high, b);
        sum[m][2] = _mm256_add_epi16(sum[m][2], _mm256_unpacklo_epi8(l, h));
        sum[m][3] = _mm256_add_epi16(sum[m][3], _mm256_unpackhi_epi8(l, h));
      }
    }
#pragma GCC unroll 2
    for (int m = 0; m < M; ++m)
      for (int q = 0; q < 4; ++q) add_to(total + m * kLutRows + q / 2 * 32 + q % 2 * 8, sum[m][q], step[m * steps]);
  }
}

#else

namespace {

template <int M> void block(const uint8_t* codes, int64_t nibbles, const int16_t* tables, const float* step,
                            int64_t steps, float* total) {
  for (int m = 0; m < M; ++m, tables += 16, step += steps, total += kLutRows) {
    __builtin_memset(total, 0, kLutRows * sizeof(float));
    for (int64_t g = 0; g < nibbles; g += kSumNibbles) {
      int32_t sum[kLutRows] = {};
      const int64_t end = g + kSumNibbles < nibbles ? g + kSumNibbles : nibbles;
      for (int64_t n = g; n < end; ++n) {
        const uint8_t* t = (const uint8_t*)(tables + n * M * 16);
        for (int r = 0; r < 32; ++r) {
          const int a = codes[n * 32 + r] & 15, b = codes[n * 32 + r] >> 4;
          sum[r] += int16_t(t[a] | t[16 + a] << 8), sum[32 + r] += int16_t(t[b] | t[16 + b] << 8);
        }
      }
      for (int r = 0; r < kLutRows; ++r) total[r] += float(sum[r]) * step[g / kSumNibbles];
    }
  }
}

#endif

} // namespace

LutLayout lut_nibble_layout() { return kLayout; }

int lut_nibble_panel() { return kRows; }

void lut_nibble_blocks(const LutMatrix& w, const int16_t* tables, const float* step, const LutOutliers* outliers,
                       int64_t batch, const float* bias, int64_t begin, int64_t end, float* y) {
  static constexpr decltype(&block<1>) run[] = {
      block<1>, block<2>,
#if defined(__AVX512BW__)
      block<3>, block<4>, block<5>, block<6>, block<7>, block<8>,
#endif
  };
  const int64_t per = 16 / w.width, nibbles = (w.cols + per - 1) / per * 4;
  const int64_t steps = (nibbles + kSumNibbles - 1) / kSumNibbles;
  float total[kRows * kLutRows];
  for (int64_t m = 0; m < batch; m += kRows) {
    const int64_t count = batch - m < kRows ? batch - m : kRows;
    for (int64_t b = begin; b < end; ++b) {
      run[count - 1](w.codes + b * nibbles * 32, nibbles, tables + m * nibbles * 16, step + m * steps, steps, total);
      const Packed rows{nullptr, nullptr, nullptr, outliers + m, count, 0};
      finish<Sums>(total, rows, w, b * kLutRows, bias, y + m * w.rows);
    }
  }
}

} // namespace lc::LC_ISA
