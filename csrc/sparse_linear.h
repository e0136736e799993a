// Linear layer with a sparse weight in compressed rows (CSR).
#pragma once
#include "isa.h"

// The contract, for every device: y[m, o] = sum_j values[j] x[m, columns[j]] + bias[o] over the entries j in
// [row_starts[o], row_starts[o + 1]), for x of shape (batch, cols) and y of shape (batch, rows); bias may be null, and
// entries of the same column add up. columns holds uint16 (column_bytes = 2) or int32 (column_bytes = 4).
//
// The structure is trusted: row_starts must rise from 0 to the number of values, and every column be in [0, cols). It
// is checked where it enters (check_csr in lc_ext/ops/sparse_linear.py), not at each call.
//
// panel is scratch of panel_size(batch, cols) floats, null for batch <= 1; y may not overlap an input. Accumulated in
// float32; the same bits for any number of threads; the last bits depend on the instruction set and on whether batch
// is 1. O(batch nnz).

/// Rows [begin, end) for one row of x, on one thread.
LC_PER_ISA(void sparse_linear_one(const float* x, const float* values, const void* columns, int column_bytes,
                                  const int32_t* row_starts, const float* bias, int64_t begin, int64_t end, float* y);)
/// Columns [begin, end) of x for rows m0 .. m0 + width of x, transposed: panel[i * width + m] = x[m0 + m, i], or 0
/// past the batch. width is 8, 16 or 32.
LC_PER_ISA(void sparse_linear_panel(const float* x, int64_t batch, int64_t cols, int64_t m0, int width, int64_t begin,
                                    int64_t end, float* panel);)
/// Rows [begin, end) of the weight for the rows of x in that panel.
LC_PER_ISA(void sparse_linear_many(const float* panel, int width, int64_t batch, int64_t m0, const float* values,
                                   const void* columns, int column_bytes, const int32_t* row_starts, int64_t rows,
                                   const float* bias, int64_t begin, int64_t end, float* y);)

namespace lc::cpu {
/// Floats of scratch that sparse_linear needs.
int64_t sparse_linear_panel_size(int64_t batch, int64_t cols);
/// All threads.
void sparse_linear(const float* x, int64_t batch, const float* values, const void* columns, int column_bytes,
                   const int32_t* row_starts, int64_t rows, int64_t cols, const float* bias, float* panel, float* y);
} // namespace lc::cpu
