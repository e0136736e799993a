// Activations as small integers, for lut_linear.
#include "../lut_linear.h"

#include "simd.h"

namespace lc::LC_ISA {
namespace {

constexpr float kTiny = 0x1p-60f, kRaise = 0x1p80f; // so that no reciprocal is infinite

// The integers nearest to x * max / amax, ties to even, as int32; 0 past n and where amax is not finite.
float quantize(const float* x, int64_t n, int max, int32_t* q) {
  constexpr int kCount = kGroup / kLanes;
  VF v[kCount];
  VI top{};
  for (int i = 0; i < kCount; ++i) {
    const int64_t left = n - int64_t(i) * kLanes;
    v[i] = left >= kLanes ? load<VF>(x + i * kLanes) : left > 0 ? load<VF>(x + i * kLanes, left) : VF{};
    const VI size = bits(v[i]) & 0x7fffffff;
    top = size > top ? size : top;
  }
  int32_t most = 0;
  for (int l = 0; l < kLanes; ++l) most = top[l] > most ? top[l] : most;
  float amax;
  __builtin_memcpy(&amax, &most, 4);
  if (most == 0 || most > 0x7f7fffff) {
    __builtin_memset(q, 0, kGroup * sizeof *q);
    return most ? __builtin_nanf("") : 0.0f;
  }
  const float raise = amax < kTiny ? kRaise : 1.0f;
  const VF by = splat(float(max) / (amax * raise)), raised = splat(raise);
  const VF magic = splat(12582912.0f); // 1.5 * 2^23: adding it rounds to an integer
  for (int i = 0; i < kCount; ++i) store(q + i * kLanes, bits(v[i] * raised * by + magic) - bits(magic));
  return amax * raise / float(max) / raise;
}

} // namespace

void lut_outliers(const float* x, int64_t cols, float* rest, LutOutliers* outliers) {
  outliers->count = 0;
  __builtin_memcpy(rest, x, size_t(cols) * sizeof(float));
  for (int64_t i = 0; i < cols; i += kGroup) {
    const int64_t n = cols - i < kGroup ? cols - i : kGroup;
    float sums[16] = {}, tops[16] = {}; // by column, so that every instruction set adds in the same order
    for (int64_t j = 0; j < n / 16 * 16; j += 16)
      for (int l = 0; l < 16; ++l) {
        const float size = __builtin_fabsf(x[i + j + l]);
        sums[l] += size, tops[l] = size > tops[l] ? size : tops[l];
      }
    for (int64_t j = n / 16 * 16; j < n; ++j) {
      const float size = __builtin_fabsf(x[i + j]);
      sums[0] += size, tops[0] = size > tops[0] ? size : tops[0];
    }
    float sum = 0, top = 0;
    for (int l = 0; l < 16; ++l) sum += sums[l], top = tops[l] > top ? tops[l] : top;
    const float limit = sum * (kOutlier / float(n));
    if (!(top > limit && top <= 0x1.fffffep127f)) continue; // also where something is NaN
    for (int64_t j = 0; j < n && outliers->count < kOutliers; ++j)
      if (__builtin_fabsf(x[i + j]) > limit) {
        outliers->column[outliers->count] = int32_t(i + j);
        outliers->value[outliers->count++] = x[i + j];
        rest[i + j] = 0;
      }
  }
}

void lut_quantize16(const float* x, int64_t cols, int64_t padded, int16_t* q, float* step) {
  int32_t group[kGroup];
  for (int64_t i = 0; i < padded; i += kGroup, ++step) {
    *step = quantize(x + i, cols - i, kMax16, group);
    const int64_t n = padded - i < kGroup ? padded - i : kGroup;
    if (n == kGroup)
      for (int j = 0; j < kGroup; ++j) q[i + j] = int16_t(group[j]);
    else
      for (int j = 0; j < n; ++j) q[i + j] = int16_t(group[j]);
  }
}

void lut_quantize8(const float* x, int64_t cols, int64_t padded, int8_t* q, float* step, float* sum) {
  int32_t group[kGroup];
  *sum = 0;
  for (int64_t i = 0; i < padded; i += kGroup, ++step) {
    *step = quantize(x + i, cols - i, kMax8, group);
    const int64_t n = padded - i < kGroup ? padded - i : kGroup;
    int32_t all = 0;
    for (int j = 0; j < kGroup; ++j) all += group[j];
    *sum += float(all) * *step;
    if (n == kGroup)
      for (int j = 0; j < kGroup; ++j) q[i + j] = int8_t(group[j]);
    else
      for (int j = 0; j < n; ++j) q[i + j] = int8_t(group[j]);
  }
}

} // namespace lc::LC_ISA
