// Block Krylov subspaces of a^T a, for the largest singular values of a matrix.
#pragma once
#include <cstdint>

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
