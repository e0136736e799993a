#include "../nm_linear.h"

#include "simd16.h"
#include "tile.h"

namespace lc::LC_ISA {
namespace {

// A block of 16 rows of the weight against Q quads of rows of x, or against one row if there is only one (Q = 0). A
// window of W floats of x serves all 16 rows of the weight: they pick from it. N is n where it is known, so that the
// slots of a group are; else 0. The sum of each quad runs over the slots in order; the one row has a chain for each
// residue of the slot modulo 4.
template <int W, int N, int Q, class V> LC_INLINE void block(const V* values, const uint32_t* words, int64_t slots,
                                                             int slots_of_group, const float* x, int64_t quad,
                                                             V16F (&total)[Q ? 4 * Q : 1]) {
  constexpr int kSlots = W == 4 ? 16 : 8, kBits = 32 / kSlots, kRows = Q ? 4 : 1, kChains = Q ? 4 * Q : 4;
  const int n = N ? N : slots_of_group;
  V16F acc[kChains];
#pragma GCC unroll 8
  for (int c = 0; c < kChains; ++c) acc[c] = zero16();
  int slot = 0; // within its group
  const float* second = x + quad;
  for (int64_t s = 0; s < slots; s += kSlots, words += 16) {
    V16U at = load16(words);
    for (int j = 0; j < kSlots; j += 4)
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c, values += 16) {
        const V16F v = load16(values);
        if constexpr (Q == 0) {
          acc[c] = fused16(v, pick16<W>(x, at), acc[c]);
        } else {
#pragma GCC unroll 4
          for (int i = 0; i < 4; ++i) acc[i] = fused16(v, pick16<W>(x + i * W, at), acc[i]);
        }
        if constexpr (Q == 2) {
#pragma GCC unroll 4
          for (int i = 0; i < 4; ++i) acc[4 + i] = fused16(v, pick16<W>(second + i * W, at), acc[4 + i]);
        }
        at = shift16(at, kBits);
        const bool last = N ? c % N == N - 1 : ++slot == n;
        x += last ? kRows * W : 0, second += last ? kRows * W : 0;
        if constexpr (N == 0) slot = last ? 0 : slot;
      }
  }
  if constexpr (Q == 0) {
    total[0] = add16(add16(acc[0], acc[1]), add16(acc[2], acc[3]));
  } else {
#pragma GCC unroll 8
    for (int c = 0; c < kChains; ++c) total[c] = acc[c];
  }
}

struct Call {
  const float* x;
  int64_t batch, quad;
  const uint32_t* words;
  int64_t slots;
  int n, m;
  const float* bias;
  bool accumulate;
  int64_t rows;
  float* y;
};

LC_INLINE void finish(const Call& c, int64_t o, V16F sum, float* y) {
  const int64_t left = c.rows - o;
  if (left >= 16) {
    if (c.bias) sum = add16(sum, load16(c.bias + o));
    if (c.accumulate) sum = add16(load16(y), sum);
    store16(y, sum);
    return;
  }
  float sums[16];
  store16(sums, sum);
  for (int64_t i = 0; i < left; ++i) {
    const float s = c.bias ? sums[i] + c.bias[o + i] : sums[i];
    y[i] = c.accumulate ? y[i] + s : s;
  }
}

template <int W, int N, int Q, class V>
void rows_of_x(const Call& c, const V* values, const uint32_t* words, int64_t i, int64_t o) {
  constexpr int kRows = Q ? 4 * Q : 1;
  V16F total[kRows];
  block<W, N, Q>(values, words, c.slots, c.n, c.x + i / 4 * c.quad, c.quad, total);
  for (int b = 0; b < kRows && i + b < c.batch; ++b) finish(c, o, total[b], c.y + (i + b) * c.rows + o);
}

template <int W, int N, class V> void range(const Call& c, const V* all_values, int64_t begin, int64_t end) {
  constexpr int kSlots = W == 4 ? 16 : 8;
  for (int64_t b = begin; b < end; ++b) {
    const V* values = all_values + b * c.slots * 16;
    const uint32_t* words = c.words + b * (c.slots / kSlots) * 16;
    int64_t i = 0;
    if (c.batch == 1) {
      rows_of_x<W, N, 0>(c, values, words, 0, 16 * b);
      continue;
    }
#if defined(LC_ONE_REGISTER)
    for (; i + 4 < c.batch; i += 8) rows_of_x<W, N, 2>(c, values, words, i, 16 * b);
#endif
    for (; i < c.batch; i += 4) rows_of_x<W, N, 1>(c, values, words, i, 16 * b);
  }
}

// The slots of a group as a constant where there is one for n = 1, 2 and 4, so that addresses are; `scalar`, which
// gains nothing from it, has one kernel for every n.
constexpr int known(int n) { return LC_LANES == 1 ? 0 : n; }

template <class V> void range_of(const Call& c, const V* values, int64_t begin, int64_t end) {
  if (c.m <= 4)
    (c.n == 1 ? range<4, known(1), V> : c.n == 2 ? range<4, known(2), V> : range<4, 0, V>)(c, values, begin, end);
  else if (c.m <= 8)
    (c.n == 4 ? range<8, known(4), V> : range<8, 0, V>)(c, values, begin, end);
  else
    range<16, 0, V>(c, values, begin, end);
}

// Large batches: x is transposed, so that an element of the weight meets 16 N rows of x at once. R rows of the weight
// together, for enough independent sums; N R = 4.

LC_INLINE float widen(float v) { return v; }
LC_INLINE float widen(uint16_t v) { // bfloat16
  const uint32_t bits = uint32_t(v) << 16;
  float f;
  __builtin_memcpy(&f, &bits, sizeof f);
  return f;
}

// `count` words of R rows of a block, the first of them at slot `slot` of its group, added to R rows of the tile.
template <int W, int G, int N, class V> void columns(const float* panel, const V* values, const uint32_t* words,
                                                     int64_t count, int slot, int n, int m, float* tile) {
  constexpr int R = 4 / N, kSlots = W == 4 ? 16 : 8, kBits = 32 / kSlots, kWidth = 16 * N;
  V16F acc[R][N];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) acc[r][v] = load16(tile + r * kWidth + 16 * v);
  for (int64_t w = 0; w < count; ++w, words += 16) {
    uint32_t at[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) at[r] = words[r];
    for (int j = 0; j < kSlots; j += 4) {
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c, values += 16) {
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          const V16F v = splat16(widen(values[r]));
          const float* x = panel + (at[r] >> (c * kBits) & (W - 1)) * kWidth;
#pragma GCC unroll 4
          for (int u = 0; u < N; ++u) acc[r][u] = fused16(v, load16(x + 16 * u), acc[r][u]);
        }
        const bool last = G ? c % G == G - 1 : ++slot == n;
        panel += last ? m * kWidth : 0;
        if constexpr (G == 0) slot = last ? 0 : slot;
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) at[r] >>= 4 * kBits;
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) store16(tile + r * kWidth + 16 * v, acc[r][v]);
}

constexpr int kTileBlocks = 2;   // of 16 rows
constexpr int kTileColumns = 64; // of x at a time, about: 16 KB of a panel of 64

template <int W, int G, int N, class V>
void panel_range(const float* panel, const Call& c, const V* values, int64_t first, int64_t begin, int64_t end) {
  constexpr int R = 4 / N, kSlots = W == 4 ? 16 : 8, kWidth = 16 * N;
  alignas(64) float tile[kTileBlocks * 16 * kWidth];
  const int64_t words = c.slots / kSlots, piece = kTileColumns * c.n / (kSlots * c.m), step = piece < 1 ? 1 : piece;
  for (int64_t b0 = begin; b0 < end; b0 += kTileBlocks) {
    const int64_t blocks = end - b0 < kTileBlocks ? end - b0 : kTileBlocks;
    __builtin_memset(tile, 0, size_t(blocks) * 16 * kWidth * sizeof(float));
    for (int64_t w = 0; w < words; w += step) {
      const int64_t count = words - w < step ? words - w : step, s = w * kSlots;
      const float* at = panel + s / c.n * c.m * kWidth;
      const int64_t slots = count * kSlots;
      for (int64_t b = 0; b < blocks; ++b) {
        const V* const here = values + ((b0 + b) * c.slots + s) * 16;
        // What comes after these slots is elsewhere: the hardware does not see it coming (8 % of the time).
        const V* const next = b + 1 < blocks ? here + c.slots * 16 : values + (b0 * c.slots + s + slots) * 16;
        for (int r = 0; r < 16; r += R) {
          for (int64_t i = 0; i < slots * R; i += 64 / int(sizeof(V))) __builtin_prefetch(next + slots * r + i);
          columns<W, G, N>(at, here + r, c.words + ((b0 + b) * words + w) * 16 + r, count, int(s % c.n), c.n, c.m,
                           tile + (16 * b + r) * kWidth);
        }
      }
    }
    const int64_t o = 16 * b0, n = c.rows - o < 16 * blocks ? c.rows - o : 16 * blocks;
    store_tile(tile, kWidth, n, c.bias, c.accumulate, c.rows, first, c.batch, o, c.y);
  }
}

template <int W, int G, class V> void panel_of(const float* panel, int width, const Call& c, const V* values,
                                               int64_t first, int64_t begin, int64_t end) {
  (width == 16   ? panel_range<W, G, 1, V>
   : width == 32 ? panel_range<W, G, 2, V>
                 : panel_range<W, G, 4, V>)(panel, c, values, first, begin, end);
}

template <class V> void panel_of_pattern(const float* panel, int width, const Call& c, const V* values, int64_t first,
                                         int64_t begin, int64_t end) {
  if (c.m <= 4)
    (c.n == 1   ? panel_of<4, known(1), V>
     : c.n == 2 ? panel_of<4, known(2), V>
                : panel_of<4, 0, V>)(panel, width, c, values, first, begin, end);
  else // positions have 4 bits, whether m is 8 or 16
    panel_of<16, 0, V>(panel, width, c, values, first, begin, end);
}

} // namespace

void nm_linear_range(const float* windows, int64_t batch, int64_t quad, const void* values, bool bfloat,
                     const uint32_t* words, int64_t slots, int n, int m, const float* bias, bool accumulate,
                     int64_t rows, int64_t begin, int64_t end, float* y) {
  const Call call{windows, batch, quad, words, slots, n, m, bias, accumulate, rows, y};
  if (bfloat)
    range_of(call, (const uint16_t*)values, begin, end);
  else
    range_of(call, (const float*)values, begin, end);
}

void nm_linear_panel_range(const float* panel, int width, int64_t batch, int64_t first, const void* values, bool bfloat,
                           const uint32_t* words, int64_t slots, int n, int m, const float* bias, bool accumulate,
                           int64_t rows, int64_t begin, int64_t end, float* y) {
  const Call call{nullptr, batch, 0, words, slots, n, m, bias, accumulate, rows, y};
  if (bfloat)
    panel_of_pattern(panel, width, call, (const uint16_t*)values, first, begin, end);
  else
    panel_of_pattern(panel, width, call, (const float*)values, first, begin, end);
}

} // namespace lc::LC_ISA
