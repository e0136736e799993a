#include "../lut_linear.h"

#include "simd8.h"

namespace lc::LC_ISA {
namespace {

constexpr int kBatch = 4;       // rows of x that share one decoding of the weight
constexpr int kTailGroups = 10; // groups of 8 codes that the padded copy of a row's end may hold

// The codebook in registers where it fits: 2^B codewords, padded with zeros. Fewer than 8 are repeated, so that
// lookups need not mask the code.
template <int B> struct Table {
  static constexpr int kVectors = B <= 3 ? 1 : B <= 5 ? 1 << (B - 3) : 0;
  V8F v[kVectors ? kVectors : 1];
  V8I plane[B == 4 ? 4 : 1]; // byte j of the 16 codewords, twice
  float all[1 << B];

  Table(const float* codebook, int k) {
    for (int i = 0; i < 1 << B; ++i) all[i] = i < k ? codebook[i] : 0.0f;
    for (int j = 0; j < kVectors; ++j)
      for (int i = 0; i < 8; ++i) v[j][i] = all[(8 * j + i) & ((1 << B) - 1)];
    if constexpr (B == 4)
      for (int i = 0; i < 128; ++i) ((uint8_t*)plane)[i] = ((const uint8_t*)all)[(i & 15) * 4 + i / 32];
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

#if defined(__AVX2__)
// Four-bit codes, 32 at a time: the four bytes of a codeword are four byte shuffles of the codes, interleaved:
// 1.5 times as fast, for batches of 1 to 8, as two lookups and a blend for each 8 codes (4096 x 4096, EPYC Milan).
LC_INLINE void weights32(const uint8_t* p, const Table<4>& t, V8F (&w)[4]) {
  // Each byte twice, so that its codes get a byte each, in the order in which unpacking restores the natural one.
  const __m256i spread = _mm256_setr_epi8(0, 0, 1, 1, 4, 4, 5, 5, 8, 8, 9, 9, 12, 12, 13, 13, //
                                          2, 2, 3, 3, 6, 6, 7, 7, 10, 10, 11, 11, 14, 14, 15, 15);
  const __m256i v = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)p)), spread);
  const __m256i code = _mm256_or_si256(_mm256_and_si256(v, _mm256_set1_epi16(0x000f)),
                                       _mm256_and_si256(_mm256_srli_epi16(v, 4), _mm256_set1_epi16(0x0f00)));
  const __m256i b0 = _mm256_shuffle_epi8((__m256i)t.plane[0], code),
                b1 = _mm256_shuffle_epi8((__m256i)t.plane[1], code);
  const __m256i b2 = _mm256_shuffle_epi8((__m256i)t.plane[2], code),
                b3 = _mm256_shuffle_epi8((__m256i)t.plane[3], code);
  const __m256i low0 = _mm256_unpacklo_epi8(b0, b1), low1 = _mm256_unpackhi_epi8(b0, b1);
  const __m256i high0 = _mm256_unpacklo_epi8(b2, b3), high1 = _mm256_unpackhi_epi8(b2, b3);
  w[0] = (V8F)_mm256_unpacklo_epi16(low0, high0);
  w[1] = (V8F)_mm256_unpackhi_epi16(low0, high0);
  w[2] = (V8F)_mm256_unpacklo_epi16(low1, high1);
  w[3] = (V8F)_mm256_unpackhi_epi16(low1, high1);
}
#endif

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

template <int B, int R, int M> LC_INLINE void accumulate(const uint8_t* const (&codes)[R], const float* x, int64_t ldx,
                                                         int64_t groups, const Table<B>& t, V8F (&acc)[R][M]) {
  int64_t g = 0;
#if defined(__AVX2__)
  if constexpr (B == 4) {
    for (; g + 4 <= groups; g += 4) {
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        V8F w[4];
        weights32(codes[r] + g * B, t, w);
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j)
#pragma GCC unroll 4
          for (int m = 0; m < M; ++m) acc[r][m] = fma8(w[j], load<V8F>(x + m * ldx + 8 * (g + j)), acc[r][m]);
      }
    }
  }
#endif
  for (; g < groups; ++g) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const V8F w = weights8<B>(codes[r] + g * B, t);
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) acc[r][m] = fma8(w, load<V8F>(x + m * ldx + 8 * g), acc[r][m]);
    }
  }
}

// R rows of the weight against M rows of x. Every (row, m) sums the groups in the same order whatever R and M are.
template <int B, int R, int M> void tile(const float* x, int64_t cols, const float (*x_tail)[8 * kTailGroups],
                                         const uint8_t* row, const Split& s, const Table<B>& t, const float* bias,
                                         float* y, int64_t rows) {
  V8F acc[R][M] = {};
  const uint8_t* at[R];
  for (int r = 0; r < R; ++r) at[r] = row + r * s.bytes;
  accumulate<B, R, M>(at, x, cols, s.whole, t, acc);
  if (s.tail_groups) {
    for (int r = 0; r < R; ++r) {
      const Tail tail(at[r], s, B);
      const uint8_t* const one[1] = {tail.bytes};
      V8F part[1][M];
      for (int m = 0; m < M; ++m) part[0][m] = acc[r][m];
      accumulate<B, 1, M>(one, x_tail[0], 8 * kTailGroups, s.tail_groups, t, part);
      for (int m = 0; m < M; ++m) acc[r][m] = part[0][m];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int m = 0; m < M; ++m) y[m * rows + r] = sum8(acc[r][m]) + (bias ? bias[r] : 0.0f);
}

template <int B, int M> void batch_rows(const float* x, const uint8_t* words, int64_t rows, int64_t cols,
                                        const Table<B>& t, const float* bias, int64_t begin, int64_t end, float* y) {
  constexpr int R = M <= 2 ? 4 : 2; // 4 to 8 chains of fma
  const Split s(cols, B);
  float x_tail[M][8 * kTailGroups] = {};
  for (int m = 0; m < M && s.tail_groups; ++m)
    __builtin_memcpy(x_tail[m], x + m * cols + 8 * s.whole, (cols - 8 * s.whole) * sizeof(float));
  int64_t o = begin;
  for (; o + R <= end; o += R)
    tile<B, R, M>(x, cols, x_tail, words + o * s.bytes, s, t, bias ? bias + o : nullptr, y + o, rows);
  for (; o < end; ++o)
    tile<B, 1, M>(x, cols, x_tail, words + o * s.bytes, s, t, bias ? bias + o : nullptr, y + o, rows);
}

template <int B> void linear(const float* x, int64_t batch, const uint8_t* words, int64_t rows, int64_t cols,
                             const float* codebook, int k, const float* bias, int64_t begin, int64_t end, float* y) {
  const Table<B> t(codebook, k);
  for (int64_t m = 0; m < batch; m += kBatch, x += kBatch * cols, y += kBatch * rows) {
    const int64_t left = batch - m;
    const auto run = left == 1   ? batch_rows<B, 1>
                     : left == 2 ? batch_rows<B, 2>
                     : left == 3 ? batch_rows<B, 3>
                                 : batch_rows<B, 4>;
    run(x, words, rows, cols, t, bias, begin, end, y);
  }
}

// One bit: rows in lanes. The weighted sums of three columns take 8 values, so a table of 8 replaces three codes by one
// lookup: a 32-bit word of 8 rows is 10 lookups of three columns and one of two. The tables of 8 words serve all rows
// of the chunk, and 8 x 8 words are transposed once for kBatch rows of x.
constexpr int kWords = 8, kTables = 11, kChunk = 256;

void one_bit_tables(const float* x, V8F c0, V8F c1, V8F c2, V8F* tables) {
  for (int w = 0; w < kWords; ++w, x += 32)
    for (int j = 0; j < kTables; ++j) {
      const V8F two = fma8(c1, splat8(x[3 * j + 1]), c0 * splat8(x[3 * j]));
      tables[w * kTables + j] = j < 10 ? fma8(c2, splat8(x[3 * j + 2]), two) : two;
    }
}

// acc[row] += the 8 words of each of the blocks of 8 rows.
void one_bit_rows(const V8F* tables, const V8U* words, int64_t blocks, V8F* acc) {
  for (int64_t b = 0; b < blocks; ++b, words += kWords) {
    V8F even = acc[b], odd{};
    for (int w = 0; w < kWords; ++w) {
      const V8U v = words[w];
      const V8F* t = tables + w * kTables;
#pragma GCC unroll 11
      for (int j = 0; j < kTables; ++j) (j & 1 ? odd : even) += lookup8(t[j], v >> (3 * j));
    }
    acc[b] = even + odd;
  }
}

void one_bit(const float* x, int64_t batch, const uint32_t* words, int64_t rows, int64_t cols, const float* codebook,
             int k, const float* bias, int64_t begin, int64_t end, float* y) {
  const int64_t stride = (cols + 31) / 32, n = end - begin, blocks = (n + 7) / 8;
  V8F c0, c1, c2;
  for (int i = 0; i < 8; ++i) {
    const float c[2] = {codebook[0], k > 1 ? codebook[1] : 0.0f};
    c0[i] = c[i & 1];
    c1[i] = c[i >> 1 & 1];
    c2[i] = c[i >> 2];
  }
  V8F acc[kBatch][kChunk / 8], tables[kWords * kTables];
  V8U columns[kChunk];
  for (int64_t m = 0; m < batch; m += kBatch) {
    const int many = int(batch - m < kBatch ? batch - m : kBatch);
    __builtin_memset(acc, 0, sizeof acc);
    for (int64_t w = 0; w < stride; w += kWords) {
      const int64_t width = stride - w < kWords ? stride - w : kWords;
      for (int64_t b = 0; b < blocks; ++b) {
        V8F r[8] = {};
        for (int64_t i = 0; i < 8 && 8 * b + i < n; ++i)
          r[i] = width == kWords ? load<V8F>(words + (begin + 8 * b + i) * stride + w)
                                 : load<V8F>(words + (begin + 8 * b + i) * stride + w, width);
        transpose8(r);
        for (int i = 0; i < 8; ++i) columns[8 * b + i] = (V8U)r[i];
      }
      for (int u = 0; u < many; ++u) {
        float padded[32 * kWords] = {};
        const int64_t left = cols - 32 * w;
        __builtin_memcpy(padded, x + (m + u) * cols + 32 * w, (left < 32 * kWords ? left : 32 * kWords) * 4);
        one_bit_tables(padded, c0, c1, c2, tables);
        one_bit_rows(tables, columns, blocks, acc[u]);
      }
    }
    for (int u = 0; u < many; ++u)
      for (int64_t i = 0; i < n; ++i)
        y[(m + u) * rows + begin + i] = acc[u][i / 8][i % 8] + (bias ? bias[begin + i] : 0.0f);
  }
}

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

void lut_linear_range(const float* x, int64_t batch, const int32_t* words, int64_t rows, int64_t cols, int bits,
                      const float* codebook, int k, const float* bias, int64_t begin, int64_t end, float* y) {
  if (bits == 1) {
    for (int64_t o = begin; o < end; o += kChunk)
      one_bit(x, batch, (const uint32_t*)words, rows, cols, codebook, k, bias, o, o + kChunk < end ? o + kChunk : end,
              y);
    return;
  }
  const auto run = bits == 2   ? linear<2>
                   : bits == 3 ? linear<3>
                   : bits == 4 ? linear<4>
                   : bits == 5 ? linear<5>
                   : bits == 6 ? linear<6>
                   : bits == 7 ? linear<7>
                               : linear<8>;
  run(x, batch, (const uint8_t*)words, rows, cols, codebook, k, bias, begin, end, y);
}

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
