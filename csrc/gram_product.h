// Products of a few rows with a^T, and of those with a, in one pass over the matrix a.
#pragma once
#include "isa.h"

// The contract: p = v a^T and x = p a, where a is (m, n), v and x are (b, n) and p is (b, m) with rows `stride` items
// apart; all row-major, n >= 16. Sums in float32, in an order that does not depend on the number of threads; fused
// multiply-adds make them differ between instruction sets by rounding. O(m n b).

/// The same on one thread, for a part of the rows of a.
LC_PER_ISA(void gram_product_range(const float* a, int64_t m, int64_t n, const float* v, int64_t b, float* p,
                                   int64_t stride, float* x);)
/// x = sign * the sum of `count` arrays of n items, in order; with `add`, x += instead.
LC_PER_ISA(void add_parts(const float* parts, int64_t count, int64_t n, bool add, float sign, float* x);)

namespace lc::cpu {
/// All threads. With `add`, x += sign * p a instead. work: gram_product_work() floats.
void gram_product(const float* a, int64_t m, int64_t n, const float* v, int64_t b, float* p, int64_t stride, bool add,
                  float sign, float* x, float* work);
int64_t gram_product_work(int64_t m, int64_t n, int64_t b);
} // namespace lc::cpu
