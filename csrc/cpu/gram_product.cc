#include "../gram_product.h"

#include "simd.h"

namespace lc::LC_ISA {
namespace {

constexpr int kBlock = 4;                   // rows of v at a time
constexpr int kRows = kLanes == 16 ? 6 : 3; // of a: kRows x kBlock accumulators
constexpr int64_t kGroupBytes = 192 * 1024; // of a, to stay in the second cache for the next rows of v

// B rows of v and q, and the last vector of each, which overlaps the one before it: of v those lanes are zero there, of
// q they are left out in the end.
template <int B> struct Rows {
  const float* v;
  float* q;
  int64_t n, whole;
  VF v_tail[B], q_tail[B];
};

// R rows of a: what lies in the first cache after the products is used at once for the second factor.
template <int R, int B> LC_INLINE void tile(const float* a, Rows<B>& rows, float* p, int64_t stride) {
  const int64_t n = rows.n, whole = rows.whole;
  VF sum[R][B];
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < B; ++j) sum[r][j] = VF{};
  for (int64_t l = 0; l < whole; l += kLanes) {
    VF x[B];
    for (int j = 0; j < B; ++j) x[j] = load<VF>(rows.v + j * n + l);
    for (int r = 0; r < R; ++r) {
      const VF e = load<VF>(a + r * n + l);
      for (int j = 0; j < B; ++j) sum[r][j] = fma(e, x[j], sum[r][j]);
    }
  }
  if (whole < n)
    for (int r = 0; r < R; ++r) {
      const VF e = load<VF>(a + r * n + n - kLanes);
      for (int j = 0; j < B; ++j) sum[r][j] = fma(e, rows.v_tail[j], sum[r][j]);
    }
  VF factor[R][B];
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < B; ++j) {
      const float s = lc::LC_ISA::sum(sum[r][j]);
      p[j * stride + r] = s;
      factor[r][j] = splat(s);
    }
  const float* next = a + R * n;
  for (int64_t l = 0; l < whole; l += kLanes) {
    VF y[B];
    for (int j = 0; j < B; ++j) y[j] = load<VF>(rows.q + j * n + l);
    for (int r = 0; r < R; ++r) {
      const VF e = load<VF>(a + r * n + l);
      __builtin_prefetch(next + r * n + l);
      for (int j = 0; j < B; ++j) y[j] = fma(e, factor[r][j], y[j]);
    }
    for (int j = 0; j < B; ++j) store(rows.q + j * n + l, y[j]);
  }
  if (whole < n)
    for (int r = 0; r < R; ++r) {
      const VF e = load<VF>(a + r * n + n - kLanes);
      for (int j = 0; j < B; ++j) rows.q_tail[j] = fma(e, factor[r][j], rows.q_tail[j]);
    }
}

template <int B> void block(const float* a, int64_t m, int64_t n, const float* v, float* p, int64_t stride, float* q) {
  Rows<B> rows;
  rows.v = v;
  rows.q = q;
  rows.n = n;
  rows.whole = n / kLanes * kLanes;
  const int rest = int(n - rows.whole);
  for (int j = 0; j < B; ++j) {
    rows.v_tail[j] = rows.q_tail[j] = VF{};
    for (int i = 0; i < rest; ++i) rows.v_tail[j][kLanes - rest + i] = v[j * n + rows.whole + i];
  }
  for (int64_t i = 0; i < m; i += kRows) {
    switch (m - i < kRows ? m - i : kRows) {
    case 1:
      tile<1, B>(a + i * n, rows, p + i, stride);
      break;
    case 2:
      tile<2, B>(a + i * n, rows, p + i, stride);
      break;
    case 3:
      tile < kRows<3 ? kRows : 3, B>(a + i * n, rows, p + i, stride);
      break;
    case 4:
      tile < kRows<4 ? kRows : 4, B>(a + i * n, rows, p + i, stride);
      break;
    case 5:
      tile < kRows<5 ? kRows : 5, B>(a + i * n, rows, p + i, stride);
      break;
    default:
      tile<kRows, B>(a + i * n, rows, p + i, stride);
    }
  }
  for (int j = 0; j < B; ++j)
    for (int l = 0; l < rest; ++l) q[j * n + rows.whole + l] += rows.q_tail[j][kLanes - rest + l];
}

} // namespace

void gram_product_range(const float* a, int64_t m, int64_t n, const float* v, int64_t b, float* p, int64_t stride,
                        float* q) {
  for (int64_t l = 0; l < b * n; ++l) q[l] = 0;
  const int64_t fit = kGroupBytes / (4 * n) / kRows * kRows;
  const int64_t group = b <= kBlock ? m : fit < kRows ? kRows : fit;
  for (int64_t i = 0; i < m; i += group) {
    const int64_t count = m - i < group ? m - i : group;
    for (int64_t j = 0; j < b; j += kBlock) {
      const float *from = a + i * n, *with = v + j * n;
      float *image = p + j * stride + i, *to = q + j * n;
      switch (b - j) {
      case 1:
        block<1>(from, count, n, with, image, stride, to);
        break;
      case 2:
        block<2>(from, count, n, with, image, stride, to);
        break;
      case 3:
        block<3>(from, count, n, with, image, stride, to);
        break;
      default:
        block<kBlock>(from, count, n, with, image, stride, to);
      }
    }
  }
}

void add_parts(const float* parts, int64_t count, int64_t n, bool add, float sign, float* x) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t lanes = n - i < kLanes ? n - i : kLanes;
    VF s{};
    for (int64_t c = 0; c < count; ++c) s += load<VF>(parts + c * n + i, lanes);
    store(x + i, add ? load<VF>(x + i, lanes) + splat(sign) * s : splat(sign) * s, lanes);
  }
}

} // namespace lc::LC_ISA
