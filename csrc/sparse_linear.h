// Linear layer with a sparse weight in compressed rows (CSR).
#pragma once
#include "activation.h"
#include "isa.h"

// The contract, for every device: y[m, o] = sum_j values[j] x[m, columns[j]] + bias[o] over the entries j in
// [row_starts[o], row_starts[o + 1]), plus what y holds if `accumulate`, for x of shape (batch, cols) and y of shape
// (batch, rows), and then f of activation.h; bias may be null. columns holds uint16 (column_bytes = 2) or int32
// (column_bytes = 4). Columns that no entry names do not matter, whatever x holds there.
//
// Accumulated in float32 by fused multiplications and additions in an order that depends on the shape and the structure
// alone, so the bits are the same for every instruction set and number of threads; they depend on the batch. y may not
// overlap an input. O(batch nnz).
//
// sparse_linear_check says whether a structure is valid; the other functions trust it.
//
// One row of x is multiplied with slices of 16 rows of similar length, longest first, rows in lanes: slice s holds
// entries starts[s] to starts[s + 1] of its longest row and of the 15 others at once, values[entry, lane] as float32 or
// bfloat16 and columns[entry, lane]; lane l is row order[16 s + l], if there is one. Where a row has no entry the value
// is 0 and the column is `cols`. At most nnz + 16 (longest row) entries.
//
// Many rows of x are multiplied with chunks of 64 rows, cut into blocks of columns of which a panel of x stays in the
// first cache. A piece is what a row holds in a block: the pieces of a block lie one after the other, longest first, so
// that the ends of loops are predicted. Chunk by chunk and block by block: values, the column of each entry within its
// block in 8 bits, the row within the chunk and the length of each piece, and the number of pieces of each block.

/// Slices [begin, end) for one row of x, which holds a zero after its last column, on one thread.
LC_PER_ISA(void sparse_linear_one(const float* x, const void* values, bool bfloat, const void* columns,
                                  int column_bytes, const int32_t* order, const int64_t* starts, int64_t rows,
                                  const float* bias, bool accumulate, int64_t begin, int64_t end, float* y);)
/// Columns [begin, end) of x for rows first .. first + width of x, transposed: panel[i * width + m] = x[first + m, i],
/// or 0 past the batch. width is 8, 16, 32 or 64.
LC_PER_ISA(void sparse_linear_panel(const float* x, int64_t batch, int64_t cols, int64_t first, int width,
                                    int64_t begin, int64_t end, float* panel);)
/// Rows [begin, end) of the weight for the rows of x in that panel, of width 8 or 16.
LC_PER_ISA(void sparse_linear_many(const float* panel, int width, int64_t batch, int64_t first, const float* values,
                                   const void* columns, int column_bytes, const int32_t* row_starts, int64_t rows,
                                   const float* bias, bool accumulate, int64_t begin, int64_t end, float* y);)
namespace lc {
/// See above.
struct SparsePieces {
  int64_t block; // columns, at most 256
  const float* values;
  const uint8_t* offsets;      // of the columns
  const int64_t* piece_starts; // of the chunks
  const uint8_t* rows;         // of the pieces
  const uint16_t* lengths;
  const uint8_t* counts; // of the pieces of a block: [chunk, block]
};
} // namespace lc

/// Chunks [begin, end) of 64 rows for the rows of x in a panel of width 32 or 64.
LC_PER_ISA(void sparse_linear_pieces(const float* panel, int width, int64_t batch, int64_t first,
                                     const lc::SparsePieces& pieces, const int32_t* row_starts, int64_t rows,
                                     int64_t cols, const float* bias, bool accumulate, int64_t begin, int64_t end,
                                     float* y);)

namespace lc::cpu {
/// -1 if row_starts rises from 0 to nnz and the columns of each row ascend and are in [0, cols); -2 if row_starts does
/// not; else the first row whose columns do not.
int64_t sparse_linear_check(const void* columns, int column_bytes, const int32_t* row_starts, int64_t rows,
                            int64_t cols, int64_t nnz);
/// order of ceil(rows / 16) * 16 entries and starts of ceil(rows / 16) + 1; returns the last of them.
int64_t sparse_linear_slices(const int32_t* row_starts, int64_t rows, int32_t* order, int64_t* starts);
/// The entries of all slices, 16 to each of the steps that sparse_linear_slices returned. bytes_out is the width of
/// columns_out, 4 if column_bytes is or cols does not fit 16 bits.
void sparse_linear_layout(const void* values, bool bfloat, const void* columns, int column_bytes,
                          const int32_t* row_starts, int64_t rows, int64_t cols, const int32_t* order,
                          const int64_t* starts, void* values_out, void* columns_out, int bytes_out);
/// One row of x, from slices, on all threads.
void sparse_linear_slice(const float* x, const void* values, bool bfloat, const void* columns, int column_bytes,
                         const int32_t* order, const int64_t* starts, int64_t rows, int64_t cols, const float* bias,
                         bool accumulate, Activation f, float* y);
/// counts of ceil(rows / 64) * ceil(cols / block) entries and piece_starts of ceil(rows / 64) + 1; returns the last of
/// them.
int64_t sparse_linear_count_pieces(const void* columns, int column_bytes, const int32_t* row_starts, int64_t rows,
                                   int64_t cols, int64_t block, uint8_t* counts, int64_t* piece_starts);
/// The rest of the layout in pieces.
void sparse_linear_fill_pieces(const float* values, const void* columns, int column_bytes, const int32_t* row_starts,
                               int64_t rows, int64_t cols, int64_t block, const int64_t* piece_starts,
                               float* values_out, uint8_t* offsets_out, uint8_t* rows_out, uint16_t* lengths_out);
/// Any batch, from pieces, on all threads.
void sparse_linear_in_pieces(const float* x, int64_t batch, const SparsePieces& pieces, const int32_t* row_starts,
                             int64_t rows, int64_t cols, const float* bias, bool accumulate, Activation f, float* y);
/// Any batch, from compressed rows, on all threads.
void sparse_linear(const float* x, int64_t batch, const float* values, const void* columns, int column_bytes,
                   const int32_t* row_starts, int64_t rows, int64_t cols, const float* bias, bool accumulate,
                   Activation f, float* y);
} // namespace lc::cpu
