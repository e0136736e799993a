#include "../jacobi_svd.h"

#include "simd.h"

namespace lc::LC_ISA {
namespace {

constexpr float kOrthogonal = 1e-6f;  // cosine of two rows that are left as they are
constexpr float kNegligible = 1e-14f; // square of a row beside that of the matrix: rounding noise
constexpr int kSweeps = 20;           // enough by far: float32 takes 4 to 9

// 1 / sqrt(x) to float32 accuracy, the same on all instruction sets; finite for 0.
LC_INLINE VF inverse_sqrt(VF x) {
  VF y = as_float(0x5f375a86 - (VI)((VU)bits(x) >> 1));
  for (int i = 0; i < 4; ++i) y = y * (1.5f - 0.5f * x * y * y);
  return y;
}

LC_INLINE VF at(const float* x, int64_t l) { return load<VF>(x + l * kLanes); }

// (x, y) becomes (c x - s y, s x + c y).
LC_INLINE void rotate(float* x, float* y, int64_t n, VF c, VF s) {
  for (int64_t l = 0; l < n; ++l) {
    const VF p = at(x, l), q = at(y, l);
    store(x + l * kLanes, c * p - s * q);
    store(y + l * kLanes, s * p + c * q);
  }
}

// The squares of two rows and their product.
LC_INLINE void products(const float* x, const float* y, int64_t n, VF& xx, VF& yy, VF& xy) {
  VF a[2] = {}, b[2] = {}, d[2] = {};
  for (int64_t l = 0; l < n; ++l) { // two chains of additions
    const VF p = at(x, l), q = at(y, l);
    const VF pp = p * p, qq = q * q, pq = p * q;
    if (l % 2) {
      a[1] += pp;
      b[1] += qq;
      d[1] += pq;
    } else {
      a[0] += pp;
      b[0] += qq;
      d[0] += pq;
    }
  }
  xx = a[0] + a[1];
  yy = b[0] + b[1];
  xy = d[0] + d[1];
}

// Rotations until the rows of x are orthogonal; w gets the same.
void orthogonalize(float* x, float* w, int64_t side, int64_t length) {
  const VI sign = splat(int32_t(-2147483647 - 1));
  for (int sweep = 0; sweep < kSweeps; ++sweep) {
    bool rotated = false;
    for (int64_t i = 0; i + 1 < side; ++i)
      for (int64_t j = i + 1; j < side; ++j) {
        float *p = x + i * length * kLanes, *q = x + j * length * kLanes;
        VF a, b, d;
        products(p, q, length, a, b, d);
        const VI turn = (d * d > kOrthogonal * kOrthogonal * a * b) & (a > kNegligible) & (b > kNegligible);
        if (!any(turn)) continue;
        rotated = true;
        // Bit operations: GCC 12 -O3 goes wrong with `mask ? a : b` on the vectors of one lane here.
        const VF delta = b - a, squares = delta * delta + 4.0f * d * d;
        const VF root = squares * inverse_sqrt(squares);
        const VF t = 2.0f * d / (delta + as_float(bits(root) | (bits(delta) & sign)));
        const VF c = inverse_sqrt(1.0f + t * t);
        const VF cosine = as_float((bits(c) & turn) | (bits(splat(1.0f)) & ~turn)), sine = as_float(bits(c * t) & turn);
        rotate(p, q, length, cosine, sine);
        rotate(w + i * side * kLanes, w + j * side * kLanes, side, cosine, sine);
      }
    if (!rotated) return;
  }
}

} // namespace

int64_t jacobi_lanes() { return kLanes; }

void jacobi_svd_group(const float* a, int64_t count, int64_t side, int64_t length, int64_t row_step, int64_t step,
                      int64_t rank, float* work, float* small, float* values, float* large) {
  const int64_t size = side * length;
  float norms[kLanes], scales[kLanes];
  for (int k = 0; k < kLanes; ++k) {
    norms[k] = 0;
    const float* from = a + k * size;
    for (int64_t i = 0; k < count && i < size; ++i) norms[k] += from[i] * from[i];
    norms[k] = __builtin_sqrtf(norms[k]);
    scales[k] = norms[k] > 0 ? 1 / norms[k] : 0;
  }
  for (int64_t i = 0; i < side; ++i)
    for (int64_t l = 0; l < length; ++l)
      for (int k = 0; k < kLanes; ++k)
        work[(i * length + l) * kLanes + k] = k < count ? a[k * size + i * row_step + l * step] * scales[k] : 0.0f;
  float* turned = work + size * kLanes;
  for (int64_t i = 0; i < side; ++i)
    for (int64_t j = 0; j < side; ++j) store(turned + (i * side + j) * kLanes, splat(i == j ? 1.0f : 0.0f));
  orthogonalize(work, turned, side, length);
  float* squares = turned + side * side * kLanes;
  for (int64_t i = 0; i < side; ++i) {
    VF sum{};
    for (int64_t l = 0; l < length; ++l) sum += at(work, i * length + l) * at(work, i * length + l);
    store(squares + i * kLanes, sum);
  }
  for (int64_t k = 0; k < count; ++k)
    for (int64_t r = 0; r < rank; ++r) {
      int64_t best = 0; // of equal ones the first
      for (int64_t i = 1; i < side; ++i)
        if (squares[i * kLanes + k] > squares[best * kLanes + k]) best = i;
      const float norm = __builtin_sqrtf(squares[best * kLanes + k]);
      values[k * rank + r] = norm * norms[k];
      for (int64_t i = 0; i < side; ++i) small[(k * rank + r) * side + i] = turned[(best * side + i) * kLanes + k];
      for (int64_t l = 0; l < length; ++l)
        large[(k * rank + r) * length + l] = work[(best * length + l) * kLanes + k] / (norm > 0 ? norm : 1);
      squares[best * kLanes + k] = -1; // taken
    }
}

} // namespace lc::LC_ISA
