// Product of a matrix with a matrix of few columns.
#pragma once
#include "isa.h"

// The contract: y = a x, or y = a^T x with `transpose`; with `add`, y += instead. a is (m, n), x is (n, b), or (m, b)
// with `transpose`, y is (m, b), or (n, b); all row-major and contiguous, b a multiple of 16. y may not overlap the
// others. Each element of y is one chain of additions in the order of the inner dimension, so it does not depend on the
// number of threads; fused multiply-adds make it differ between instruction sets by rounding. O(m n b).

/// The m rows of y, on one thread, where the element (i, l) of the matrix is a[i * row_step + l * step], l < k.
LC_PER_ISA(void skinny_matmul_range(const float* a, int64_t row_step, int64_t step, int64_t m, int64_t k,
                                    const float* x, int64_t b, bool add, float* y);)

namespace lc::cpu {
/// All threads.
void skinny_matmul(const float* a, int64_t m, int64_t n, bool transpose, const float* x, int64_t b, bool add, float* y);
} // namespace lc::cpu
