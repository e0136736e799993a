// Activations as lut_linear reads them: small integers, side by side.
#include "../lut_linear.h"

#include "simd8.h"

namespace lc::LC_ISA {
namespace {

constexpr float kTiny = 0x1p-60f, kRaise = 0x1p80f; // so that no reciprocal is infinite

constexpr int kCount = kGroup / kLanes, kColumns = 16 / kLanes;

// kGroup columns of a row of x, zeros past its end, without their outliers.
struct Group {
  VF v[kCount];

  // Outliers are added to `outliers`; columns are counted from `at`.
  Group(const float* x, int64_t n, int64_t at, LutOutliers* outliers) {
    for (int i = 0; i < kCount; ++i) {
      const int64_t left = n - int64_t(i) * kLanes;
      v[i] = left >= kLanes ? load<VF>(x + i * kLanes) : left > 0 ? load<VF>(x + i * kLanes, left) : VF{};
    }
    VF sums[kColumns] = {}; // 16 of them, so that every instruction set adds in the same order
    for (int i = 0; i < kCount; ++i) sums[i % kColumns] += abs(v[i]);
    float all[16];
    for (int c = 0; c < kColumns; ++c) store(all + c * kLanes, sums[c]);
    for (int half = 8; half; half /= 2)
      for (int l = 0; l < half; ++l) all[l] += all[l + half];
    const float limit = all[0] * (kOutlier / float(n < kGroup ? n : kGroup)), size = top();
    if (size > limit && size <= 0x1.fffffep127f) take(limit, at, outliers); // not where something is NaN
  }

  float top() const {
    VI top{};
    for (int i = 0; i < kCount; ++i) {
      const VI size = bits(v[i]) & 0x7fffffff;
      top = size > top ? size : top;
    }
    int32_t most = 0;
    for (int l = 0; l < kLanes; ++l) most = top[l] > most ? top[l] : most;
    float size;
    __builtin_memcpy(&size, &most, 4);
    return size;
  }

  void take(float limit, int64_t at, LutOutliers* outliers) {
    for (int j = 0; j < kGroup && outliers->count < kOutliers; ++j) {
      const float x = v[j / kLanes][j % kLanes];
      if (!(__builtin_fabsf(x) > limit)) continue;
      outliers->column[outliers->count] = int32_t(at + j);
      outliers->value[outliers->count++] = x;
      v[j / kLanes][j % kLanes] = 0;
    }
  }

  // The integers nearest to v * max / amax, ties to even; 0 where amax is not finite. The step.
  float quantize(int max, int32_t* q) const {
    const float amax = top();
    if (amax == 0 || !(amax <= 0x1.fffffep127f)) {
      __builtin_memset(q, 0, kGroup * sizeof *q);
      return amax == 0 ? 0.0f : __builtin_nanf("");
    }
    const float raise = amax < kTiny ? kRaise : 1.0f;
    const VF by = splat(float(max) / (amax * raise)), raised = splat(raise);
    const VF magic = splat(12582912.0f); // 1.5 * 2^23: adding it rounds to an integer
    for (int i = 0; i < kCount; ++i) store(q + i * kLanes, bits(v[i] * raised * by + magic) - bits(magic));
    return amax * raise / float(max) / raise;
  }
};

} // namespace

void lut_panel_units(const int32_t* rows, int64_t units, int64_t width, int64_t begin, int64_t end, int32_t* panel) {
  for (int64_t m = 0; m < width; m += 8) {
    const int64_t n = width - m < 8 ? width - m : 8;
    for (int64_t u = begin; u < end; u += 8) {
      const int64_t c = end - u < 8 ? end - u : 8;
      V8F r[8] = {};
      for (int64_t i = 0; i < n; ++i) {
        const int32_t* from = rows + (m + i) * units + u;
        r[i] = c == 8 ? load<V8F>(from) : load<V8F>(from, c);
      }
      transpose8(r);
      for (int64_t i = 0; i < c; ++i) {
        int32_t* to = panel + (u + i) * width + m;
        if (n == 8)
          store(to, r[i]);
        else
          store(to, r[i], n);
      }
    }
  }
}

void lut_outliers(const float* x, int64_t cols, float* rest, LutOutliers* outliers) {
  outliers->count = 0;
  for (int64_t i = 0; i < cols; i += kGroup) {
    const Group group(x + i, cols - i, i, outliers);
    const int64_t n = cols - i < kGroup ? cols - i : kGroup;
    if (n == kGroup)
      __builtin_memcpy(rest + i, group.v, sizeof group.v);
    else
      __builtin_memcpy(rest + i, group.v, size_t(n) * sizeof(float));
  }
}

void lut_quantize16(const float* x, int64_t cols, int64_t padded, int16_t* q, float* step, LutOutliers* outliers) {
  outliers->count = 0;
  int32_t group[kGroup];
  for (int64_t i = 0; i < padded; i += kGroup, ++step) {
    *step = Group(x + i, cols - i, i, outliers).quantize(kMax16, group);
    const int64_t n = padded - i < kGroup ? padded - i : kGroup;
    if (n == kGroup)
      for (int j = 0; j < kGroup; ++j) q[i + j] = int16_t(group[j]);
    else
      for (int j = 0; j < n; ++j) q[i + j] = int16_t(group[j]);
  }
}

void lut_quantize8(const float* x, int64_t cols, int64_t padded, int8_t* q, float* step, float* sum,
                   LutOutliers* outliers) {
  outliers->count = 0;
  int32_t group[kGroup];
  *sum = 0;
  for (int64_t i = 0; i < padded; i += kGroup, ++step) {
    *step = Group(x + i, cols - i, i, outliers).quantize(kMax8, group);
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
