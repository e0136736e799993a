// Two-dimensional convolution with a kernel that is kept as codes, sparse elements, or both.
#pragma once
#include "isa.h"

namespace lc {

/// The outputs of a convolution are cut into tiles of kConvTile; a tile has one row of kConvTile weights for each tap,
/// that is for each (i, j, c) of the kernel's height, width and input channels, in this order.
constexpr int kConvTile = 16;

struct ConvShape {
  int64_t batch, channels, height, width;       // of the input
  int64_t step[4];                              // of the input: from one image, channel, row, column to the next
  int64_t outputs, kernel_height, kernel_width; // of the kernel
  int64_t stride[2], padding[2], dilation[2];   // vertical, horizontal

  int64_t taps() const { return kernel_height * kernel_width * channels; }
  int64_t tiles() const { return (outputs + kConvTile - 1) / kConvTile; }
  int64_t out_height() const {
    return (height + 2 * padding[0] - dilation[0] * (kernel_height - 1) - 1) / stride[0] + 1;
  }
  int64_t out_width() const { return (width + 2 * padding[1] - dilation[1] * (kernel_width - 1) - 1) / stride[1] + 1; }
};

/// weight[tile][tap][o] = table[code] + the sparse elements there. Codes: null, or bits = 4: kConvTile / 2 bytes a tap,
/// byte j with the code of output j in its low half and of output j + 8 in its high half, 16 codewords; bits = 8: a
/// byte for each output, 256 codewords. With a codebook for each output, the codewords of a tile are rows of kConvTile,
/// one for each code, at table + tile * kConvTile << bits; else one codebook serves all. Sparse elements: starts null,
/// or starts[tiles + 1], and the places tap * kConvTile + o in a tile and values of those of tile t from starts[t] on.
struct ConvWeight {
  const uint8_t* codes;
  int bits;
  const float* table;
  bool per_output; // codebooks
  const int32_t* starts;
  const int32_t* places;
  const float* values;
};

} // namespace lc

// y[n, p, q, o] = bias[o] + sum over (i, j, c) of weight * x[n, c, p s0 + i d0 - p0, q s1 + j d1 - p1], x zero outside:
// channels last, contiguous; bias may be null. Accumulated in float32, the taps in order: the same bits for any number
// of threads; the last bits depend on the instruction set. Scratch: a padded copy of some images, and up to 1 MiB of
// weights, or those of one tile.

/// The weights of a tile by its codes.
LC_PER_ISA(void conv_tile_decode(const uint8_t* codes, int bits, const float* table, bool per_output, int64_t taps,
                                 float* weight);)
/// y[i * ldy + o] for the n positions whose first tap is at image + at[i], and `outputs` of the tile's outputs; a tap
/// row of `runs` runs: run r is `length` consecutive floats from run_at[r] on.
LC_PER_ISA(void conv_tile_positions(const float* image, const int64_t* at, int64_t n, const int64_t* run_at,
                                    int64_t runs, int64_t length, const float* weight, const float* bias, int outputs,
                                    float* y, int64_t ldy);)

namespace lc::cpu {
void tiled_conv2d(const float* x, const ConvShape& shape, const ConvWeight& weight, const float* bias, float* y);
} // namespace lc::cpu
