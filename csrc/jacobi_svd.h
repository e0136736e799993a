// Singular value decompositions of many small matrices.
#pragma once
#include "isa.h"

// The contract: a holds `count` matrices (m, n), row-major, one after the other, whose squares do not overflow. Of the
// `rank` largest singular triplets of each, `left` (count, rank, m) and `right` (count, rank, n) get the vectors and
// `values` (count, rank) the values in descending order. The vectors of the longer side are not orthonormal where
// values are below 1e-3 of the largest, to which they are only as accurate as float32 is. One-sided Jacobi rotations,
// a matrix in each lane. The same result for any number of threads and any instruction set. O(count m n min(m, n)).

/// How many matrices are solved at a time, and that many or less of them on one thread. x(i, l) = a[i * row_step +
/// l * step], i < side, l < length. work: side * (length + side + 1) floats for each lane.
LC_PER_ISA(int64_t jacobi_lanes();)
LC_PER_ISA(void jacobi_svd_group(const float* a, int64_t count, int64_t side, int64_t length, int64_t row_step,
                                 int64_t step, int64_t rank, float* work, float* small, float* values, float* large);)

namespace lc::cpu {
void jacobi_svd(const float* a, int64_t count, int64_t m, int64_t n, int64_t rank, float* left, float* values,
                float* right);
} // namespace lc::cpu
