#include "../tiled_conv2d.h"

#include "simd8.h"

namespace lc::LC_ISA {
namespace {

constexpr int kVectors = kConvTile / kLanes;
// Positions that share a load of the weights: 12 accumulators, but for the scalar build, where a tile is 16 by itself.
constexpr int kBlock = kVectors >= 12 ? 1 : 12 / kVectors;

template <int P> LC_INLINE void block(const float* image, const int64_t* at, const int64_t* run_at, int64_t runs,
                                      int64_t length, const float* weight, const float* bias, int outputs, float* y,
                                      int64_t ldy) {
  VF sum[P][kVectors];
  for (int p = 0; p < P; ++p)
    for (int v = 0; v < kVectors; ++v) sum[p][v] = load<VF>(bias + v * kLanes);
  for (int64_t r = 0; r < runs; ++r) {
    const float* x[P];
    for (int p = 0; p < P; ++p) x[p] = image + at[p] + run_at[r];
    for (int64_t l = 0; l < length; ++l, weight += kConvTile) {
      VF w[kVectors];
      for (int v = 0; v < kVectors; ++v) w[v] = load<VF>(weight + v * kLanes);
      for (int p = 0; p < P; ++p) {
        const VF e = splat(x[p][l]);
        for (int v = 0; v < kVectors; ++v) sum[p][v] = fma(e, w[v], sum[p][v]);
      }
    }
  }
  for (int p = 0; p < P; ++p) {
    if (outputs == kConvTile) {
      for (int v = 0; v < kVectors; ++v) store(y + p * ldy + v * kLanes, sum[p][v]);
    } else {
      __builtin_memcpy(y + p * ldy, sum[p], outputs * sizeof(float));
    }
  }
}

} // namespace

void conv_tile_decode(const uint8_t* codes, int bits, const float* table, bool per_output, int64_t taps,
                      float* weight) {
  if (per_output) {
    const V8U lane = {0, 1, 2, 3, 4, 5, 6, 7};
    for (int64_t t = 0; t < taps; ++t, weight += kConvTile) {
      const V8U two = widen_bytes8(codes + kConvTile * bits / 8 * t);
      const V8U low = bits == 4 ? two & 15 : two, high = bits == 4 ? two >> 4 : widen_bytes8(codes + kConvTile * t + 8);
      store(weight, gather8(table, low * kConvTile + lane));
      store(weight + 8, gather8(table, high * kConvTile + lane + 8));
    }
    return;
  }
  if (bits == 8) {
    for (int64_t i = 0; i < taps * kConvTile; i += 8) store(weight + i, gather8(table, widen_bytes8(codes + i)));
    return;
  }
  const V8F low = load<V8F>(table), high = load<V8F>(table + 8);
  for (int64_t t = 0; t < taps; ++t) {
    const V8U two = widen_bytes8(codes + 8 * t), upper = two >> 4;
    store(weight + t * kConvTile, select8(two << 28, lookup8(high, two), lookup8(low, two)));
    store(weight + t * kConvTile + 8, select8(upper << 28, lookup8(high, upper), lookup8(low, upper)));
  }
}

void conv_tile_positions(const float* image, const int64_t* at, int64_t n, const int64_t* run_at, int64_t runs,
                         int64_t length, const float* weight, const float* bias, int outputs, float* y, int64_t ldy) {
  float first[kConvTile] = {};
  if (bias) __builtin_memcpy(first, bias, outputs * sizeof(float));
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock)
    block<kBlock>(image, at + i, run_at, runs, length, weight, first, outputs, y + i * ldy, ldy);
  if constexpr (kBlock > 3)
    for (; i + 3 <= n; i += 3) block<3>(image, at + i, run_at, runs, length, weight, first, outputs, y + i * ldy, ldy);
  for (; i < n; ++i) block<1>(image, at + i, run_at, runs, length, weight, first, outputs, y + i * ldy, ldy);
}

} // namespace lc::LC_ISA
