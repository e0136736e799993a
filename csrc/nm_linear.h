// Linear layer with an N:M sparse weight.
#pragma once
#include "activation.h"
#include "isa.h"

// The contract, for every device. Each row of the weight is cut into groups of m consecutive columns, 2 <= m <= 16, the
// last one perhaps shorter, with n < m slots each. Slot s = g n + t of row o has a value and the position of its column
// in group g: W[o, g m + position(o, s)] = value(o, s), for t = 0 .. n - 1, and W is 0 elsewhere. Positions ascend
// within a group and are below m; a slot whose column is past the last one is ignored.
//
// Stored: values[o, s] as float32 or bfloat16; positions of ceil(log2 m) bits each, as an LSB-first bit stream of
// 32-bit words for each row (pack_codes).
//
// Computed on: blocks of 16 rows, rows in lanes. Slots are padded with zeros to a multiple of 16 (m <= 4) or 8 (else):
// values[block, slot, row], and the positions of 16 slots in 2 bits each, or of 8 in 4 bits, in one word,
// words[block, slot / 16 or 8, row].
//
// nm_linear: y[i, o] = sum_s value(o, s) x[i, column(o, s)] + bias[o], plus what y holds if `accumulate`; bias may be
// null; then f of activation.h. Accumulated in float32 by fused multiplications and additions in an order that depends
// on the shape alone, so the bits are the same for every instruction set and number of threads. A slot that holds 0
// counts: 0 times Inf is NaN. y may not overlap an input. O(batch rows cols n / m).

/// Blocks [begin, end) of 16 rows, on one thread. x is given as windows of W = 4, 8 or 16 floats (the least that is m
/// or more), one for each group that a slot, padding included, belongs to, with zeros past the last column:
/// windows[group] for a batch of 1, else quads of rows, `quad` floats apart, of windows[group, row of the quad].
LC_PER_ISA(void nm_linear_range(const float* windows, int64_t batch, int64_t quad, const void* values, bool bfloat,
                                const uint32_t* words, int64_t slots, int n, int m, const float* bias, bool accumulate,
                                int64_t rows, int64_t begin, int64_t end, float* y);)
/// The same for a panel of x, transposed: panel[column * width + i] = x[first + i, column], or 0 past the batch and for
/// the columns of padded slots. width is 16, 32 or 64.
LC_PER_ISA(void nm_linear_panel_range(const float* panel, int width, int64_t batch, int64_t first, const void* values,
                                      bool bfloat, const uint32_t* words, int64_t slots, int n, int m,
                                      const float* bias, bool accumulate, int64_t rows, int64_t begin, int64_t end,
                                      float* y);)

namespace lc::cpu {
/// Slots of a row with their padding.
int64_t nm_linear_slots(int64_t cols, int n, int m);
/// The layout that is computed on, from the stored one: values_out of blocks * slots * 16 items, where blocks =
/// ceil(rows / 16), and words_out of blocks * slots (m <= 4; else twice as many). Returns -1, or the first row whose
/// positions do not ascend or are not below m; the outputs are undefined then.
int64_t nm_linear_layout(const void* values, bool bfloat, const int32_t* positions, int64_t rows, int64_t cols, int n,
                         int m, void* values_out, uint32_t* words_out);
/// All threads.
void nm_linear(const float* x, int64_t batch, const void* values, bool bfloat, const uint32_t* words, int64_t rows,
               int64_t cols, int n, int m, const float* bias, bool accumulate, Activation f, float* y);
} // namespace lc::cpu
