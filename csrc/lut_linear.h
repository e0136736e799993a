// Linear layer with packed codes and codebooks.
#pragma once
#include "activation.h"
#include "isa.h"

// The contract, for every device: row o of the weight is W[o, i] = codebook[t][code(o, i)], where code(o, i) is the
// `bits`-bit number at bit i * bits of the LSB-first bit stream words[o, 0 .. ceil(cols * bits / 32)), little-endian;
// 1 <= bits <= 8, a codebook has 1 <= k <= 2^bits codewords, and codes from k on mean 0. There is one codebook, or
// `groups` for each row (t = o * groups + i / group_cols). Codebooks must be finite. Nothing outside the words is read,
// whatever they hold. Outputs may not overlap an input.
//
// lut_decode: weight[o, i] = W[o, i], exactly. O(rows cols).
//
// lut_repack: the words as the kernels read them, in lut_layout_bytes(...) bytes aligned to 64. Codes of 3 bits take 4
// there, of 5 to 7 bits 8. One pass, O(rows cols). The layout is the same for every instruction set:
//   exact, int16, int8   blocks of 64 rows; in them steps of 32 / width columns; in a step four times 64 bytes, for 16
//                        rows each, ordered so that the decoded columns come as the arithmetic takes them: one by one
//                        (exact), in pairs (int16) or fours (int8), a 32-bit lane for each row (`place` in the .cc)
//   nibbles              1 and 2 bits: blocks of 64 rows; in them, for every 4 / bits columns, 32 bytes: row r in the
//                        low half of byte r, row 32 + r in the high half
//   words                1 and 2 bits: blocks of 64 rows; in them, for every 16 / bits columns, 16 bits of each row
//   row_major            each row by itself, low half of a byte first, in whole 64 bytes
//
// lut_linear: y[m, o] = f(sum_i x[m, i] W[o, i] + bias[o]), with f of activation.h, for x of shape (batch, cols), y of
// shape (batch, rows); bias may be null. The same bits for every instruction set and number of threads, and row m of y
// depends on row m of x alone. Three kinds of arithmetic:
//   exact  float32: blocks of kExactBlock columns are summed in order, each by fused multiply-adds in order. Error at
//          most about cols * 2^-24 * sum_i |x W|.
//   int16  x[m, i] = q * step, |q| <= kMax16, with a step for each row and kGroup columns, and codewords of `table`,
//          |c| <= kMax16, with a step `scale` for each row: integer products, exact in 32 bits. With 1 and 2 bits and
//          one codebook, in the layouts nibbles and words: the sums of x W that a nibble can have, as integers of at
//          most kMaxSum, a step for each kSumNibbles of them. A row of x that is not finite has NaN in that row of y.
//   int8   the same with |q| <= kMax8 and codewords 0 <= c <= kMax8 that stand for c - `offset`. In the layout int8 of
//          8 bits there are codewords in place of codes, and `codebook` says what each of them stands for.
// In the latter two an x[m, i] of more than kOutlier times the mean magnitude of its kGroup columns is multiplied by
// itself, in float32, the first kOutliers of a row: else it would coarsen the step of its group.
namespace lc {

enum class LutMode : int { exact, int16, int8 };
enum class LutLayout : int { exact, int16, int8, nibbles, words, row_major };

struct LutMatrix {
  const uint8_t* codes; // from lut_repack
  int64_t rows, cols;
  LutLayout layout;
  int width;             // bits of a code in the layout: 1, 2, 4 or 8
  int64_t groups;        // codebooks of a row, or 0: one codebook for all
  int64_t group_cols;    // columns that share a codebook
  const float* codebook; // 2^width floats each: exact and nibbles
  const int16_t* table;  // 2^width integers each: int16 and int8
  const float* scale;    // of each row: int16 and int8
  const int32_t* offset; // of each row: int8
  Activation activation = Activation::none;
};

constexpr int64_t kLutRows = 64; // rows of a block
constexpr int kExactBlock = 256; // columns
constexpr int kGroup = 128;      // columns that share a step of x
constexpr int kMax16 = 4095;     // so that kGroup products fit 32 bits
constexpr int kMax8 = 127;
constexpr int kSumNibbles = 16; // nibbles that share a step
constexpr int kMaxSum = 32767 / kSumNibbles;
constexpr int64_t kLutBatch = 96; // rows of x at a time

constexpr float kOutlier = 10;
constexpr int kOutliers = 32;

/// Those of a row of x, by column.
struct LutOutliers {
  int32_t count, column[kOutliers];
  float value[kOutliers];
};

} // namespace lc

// One thread each; blocks [begin, end) are of kLutRows rows. x is in units of 4 bytes, of 1, 2 or 4 columns, padded
// with zeros to whole steps: in panels of lut_panel() rows, the last one of what is left; in a panel for every unit the
// rows side by side. step: (batch, groups of kGroup columns). sum: of each row, what the integers times their steps add
// up to.
LC_PER_VNNI_ISA(int lut_panel();)
// Units [begin, end) of `width` rows, `units` apart, side by side.
LC_PER_VNNI_ISA(void lut_panel_units(const int32_t* rows, int64_t units, int64_t width, int64_t begin, int64_t end,
                                     int32_t* panel);)
// rest: x with zeros in place of the outliers.
LC_PER_VNNI_ISA(void lut_outliers(const float* x, int64_t cols, float* rest, lc::LutOutliers* outliers);)
// The same, as integers.
LC_PER_VNNI_ISA(void lut_quantize16(const float* x, int64_t cols, int64_t padded, int16_t* q, float* step,
                                    lc::LutOutliers* outliers);)
LC_PER_VNNI_ISA(void lut_quantize8(const float* x, int64_t cols, int64_t padded, int8_t* q, float* step, float* sum,
                                   lc::LutOutliers* outliers);)
LC_PER_VNNI_ISA(void lut_exact_blocks(const LutMatrix& w, const int32_t* x, int64_t batch, const float* bias,
                                      int64_t begin, int64_t end, float* y);)
LC_PER_VNNI_ISA(void lut_int16_blocks(const LutMatrix& w, const int32_t* x, const float* step,
                                      const lc::LutOutliers* outliers, int64_t batch, const float* bias, int64_t begin,
                                      int64_t end, float* y);)
LC_PER_VNNI_ISA(void lut_int8_blocks(const LutMatrix& w, const int32_t* x, const float* step, const float* sum,
                                     const lc::LutOutliers* outliers, int64_t batch, const float* bias, int64_t begin,
                                     int64_t end, float* y);)

// Which of nibbles and words the instruction set reads. tables: for nibbles [begin, end) of the columns of a row of x,
// `stride` apart, 16 integers of 16 bits; for layout nibbles their low bytes, then their high bytes. A batch is in
// panels of lut_nibble_panel() rows, side by side for every nibble.
LC_PER_VNNI_ISA(lc::LutLayout lut_nibble_layout();)
LC_PER_VNNI_ISA(int lut_nibble_panel();)
LC_PER_VNNI_ISA(void lut_nibble_tables(const float* x, int64_t cols, int width, const float* codebook, int64_t begin,
                                       int64_t end, int16_t* tables, int64_t stride, float* step);)
LC_PER_VNNI_ISA(void lut_nibble_blocks(const LutMatrix& w, const int16_t* tables, const float* step,
                                       const lc::LutOutliers* outliers, int64_t batch, const float* bias, int64_t begin,
                                       int64_t end, float* y);)
LC_PER_ISA(void lut_decode_range(const int32_t* words, int64_t cols, int bits, const float* codebook, int k,
                                 int64_t begin, int64_t end, float* weight);)

namespace lc::cpu {
/// All threads.
int64_t lut_layout_bytes(int64_t rows, int64_t cols, int bits, LutLayout layout);
void lut_repack(const int32_t* words, int64_t rows, int64_t cols, int bits, LutLayout layout, uint8_t* out);
LutLayout lut_nibble_layout();
void lut_linear(const LutMatrix& w, LutMode mode, const float* x, int64_t batch, const float* bias, float* y);
void lut_decode(const int32_t* words, int64_t rows, int64_t cols, int bits, const float* codebook, int k,
                float* weight);
} // namespace lc::cpu
