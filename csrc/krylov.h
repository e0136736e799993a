// Block Krylov subspaces of a^T a, for the largest singular values of a matrix.
#pragma once
#include "isa.h"

/// p = v a^T and q = p a, in one pass over a: (m, n); v and q are (b, n), p is (b, m) with rows p_stride apart. All
/// row-major, n >= 16. One thread.
LC_PER_ISA(void gram_product_range(const float* a, int64_t m, int64_t n, const float* v, int64_t b, float* p,
                                   int64_t p_stride, float* q);)
/// x = keep x + sign * the sum of `count` arrays of n items, in order.
LC_PER_ISA(void add_partial_sums(const float* parts, int64_t count, int64_t n, bool keep, float sign, float* x);)
/// sum of x[i] * y[i]
LC_PER_ISA(float dot(const float* x, const float* y, int64_t n);)
/// y += s x
LC_PER_ISA(void axpy(float s, const float* x, int64_t n, float* y);)
/// x *= s
LC_PER_ISA(void scale(float s, int64_t n, float* x);)

namespace lc::cpu {

// The contract: rows of v are orthonormal; those before `processed` have been multiplied, p holds their images, v a^T,
// and for each such row j the column j of h holds v a^T a v_j^T: the coefficients of a^T a v_j on all rows of v.
struct KrylovSpace {
  const float* a; // (m, n), n >= 16, of a scale whose fourth powers neither overflow nor vanish
  int64_t m, n;
  float* v;  // (capacity, n)
  float* p;  // (capacity, m)
  double* h; // (capacity, capacity)
  int64_t capacity;
};

/// Makes the rows size to size + rows of v orthonormal, also to those before; where a row depends on the others, a
/// pseudorandom one takes its place. size + rows <= capacity <= n.
void krylov_extend(const KrylovSpace& space, int64_t size, int64_t rows);

/// Multiplies the rows from `processed` to `size` and appends as many, the new directions of their products; `steps`
/// times, the last with size + steps (size - processed) <= capacity rows. Products in float32; the same for any number
/// of threads. O(m n) for each row, and O(size n) to make it orthogonal.
void krylov_steps(const KrylovSpace& space, int64_t processed, int64_t size, int64_t steps);

} // namespace lc::cpu
