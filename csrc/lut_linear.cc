#include "lut_linear.h"

#include <algorithm>
#include <cstring>

#include "pack_codes.h"
#include "parallel.h"

namespace lc::cpu {
namespace {

// About `weights` weights in a chunk, in whole blocks; a function of the shape only.
int64_t per_chunk(int64_t cols, int64_t weights, int64_t block) {
  return std::max<int64_t>(1, weights / std::max<int64_t>(cols * block, 1));
}

int layout_width(int bits) { return bits <= 2 ? bits : bits <= 4 ? 4 : 8; }

int64_t steps(int64_t cols, int width) { return (cols * width + 31) / 32; }

int64_t steps16(int64_t cols, int width) { return (cols * width + 15) / 16; }

// Where the code of column c of a step of row r of 16 is: bit `bit` of byte `byte` of the 64.
struct Place {
  int byte, bit;
};

Place place(LutLayout layout, int width, int r, int c) {
  const int four = r / 4 * 16, row = r % 4;
  if (width == 8) {
    if (layout == LutLayout::exact) return {four + 4 * c + row, 0};
    if (layout == LutLayout::int16) return {four + 8 * (c / 2) + 2 * row + c % 2, 0};
    return {4 * r + c, 0};
  }
  const int bit = layout == LutLayout::exact   ? width * c
                  : layout == LutLayout::int16 ? 4 * (c / 2 + 4 * (c % 2))
                                               : 8 * (c % 4) + width * (c / 4);
  return {4 * r + bit / 8, bit % 8};
}

void repack_steps(const uint8_t* codes, int64_t cols, int width, LutLayout layout, int row, uint8_t* out) {
  const int columns = 32 / width;
  Place at[32];
  for (int c = 0; c < columns; ++c) at[c] = place(layout, width, row % 16, c);
  out += row / 16 * 64;
  for (int64_t i = 0; i < cols; i += columns, out += 256)
    for (int c = 0; c < columns && i + c < cols; ++c) out[at[c].byte] |= uint8_t(codes[i + c] << at[c].bit);
}

void repack_nibbles(const uint8_t* codes, int64_t cols, int width, int row, uint8_t* out) {
  const int columns = 4 / width, shift = row < 32 ? 0 : 4;
  for (int64_t i = 0; i < cols; ++i)
    out[i / columns * 32 + row % 32] |= uint8_t(codes[i] << (i % columns * width + shift));
}

void repack_words(const uint8_t* codes, int64_t cols, int width, int row, uint8_t* out) {
  const int columns = 16 / width;
  for (int64_t i = 0; i < cols; ++i) {
    const int bit = int(i % columns) * width;
    out[i / columns * 128 + 2 * row + bit / 8] |= uint8_t(codes[i] << bit % 8);
  }
}

// Memory of a thread that is used again by its next call: fresh pages cost more than the kernel.
struct Scratch {
  std::vector<int32_t> rows, panels;
  std::vector<float> steps, sums;
  std::vector<float> rest;
  std::vector<LutOutliers> outliers;
  std::vector<int16_t> tables;
};

Scratch& scratch() {
  static thread_local Scratch s;
  return s;
}

// Rows of units side by side in panels.
void to_panels(const int32_t* rows, int64_t batch, int64_t units, int64_t panel, int32_t* out) {
  const auto run = LC_DISPATCH_VNNI(lut_panel_units);
  const int64_t parts = chunk_count(units, 1024);
  parallel_for(chunk_count(batch, panel) * parts, 1, [&](int64_t c, int64_t, int64_t) {
    const int64_t first = c / parts * panel, begin = c % parts * 1024;
    run(rows + first * units, units, std::min(panel, batch - first), begin, std::min(units, begin + 1024),
        out + first * units);
  });
}

// x without its outliers.
const float* rest_of(Scratch& s, const float* x, int64_t batch, int64_t cols) {
  s.rest.resize(size_t(batch * cols));
  s.outliers.resize(size_t(batch));
  float* rest = s.rest.data();
  LutOutliers* outliers = s.outliers.data();
  const auto run = LC_DISPATCH_VNNI(lut_outliers);
  parallel_for(batch, 8, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) run(x + m * cols, cols, rest + m * cols, outliers + m);
  });
  return rest;
}

void by_nibbles(const LutMatrix& w, const float* x, int64_t batch, const float* bias, float* y) {
  Scratch& s = scratch();
  x = rest_of(s, x, batch, w.cols);
  const int64_t nibbles = steps16(w.cols, w.width) * 4, sums = chunk_count(nibbles, kSumNibbles);
  s.tables.resize(size_t(batch * nibbles * 16));
  s.steps.resize(size_t(batch * sums));
  const auto make = LC_DISPATCH_VNNI(lut_nibble_tables);
  constexpr int64_t kPart = 32 * kSumNibbles;
  const int64_t panel = LC_DISPATCH_VNNI(lut_nibble_panel)();
  int16_t* tables = s.tables.data(); // of the calling thread
  float* steps = s.steps.data();
  const LutOutliers* outliers = s.outliers.data();
  const int64_t parts = chunk_count(nibbles, kPart);
  parallel_for(batch * parts, 1, [&](int64_t c, int64_t, int64_t) {
    const int64_t m = c / parts, begin = c % parts * kPart;
    const int64_t first = m / panel * panel, width = std::min(panel, batch - first);
    make(x + m * w.cols, w.cols, w.width, w.codebook, begin, std::min(nibbles, begin + kPart),
         tables + (first * nibbles + begin * width + m - first) * 16, width * 16,
         steps + m * sums + begin / kSumNibbles);
  });
  const auto run = LC_DISPATCH_VNNI(lut_nibble_blocks);
  const int64_t blocks = chunk_count(w.rows, kLutRows);
  // A batch reads its tables again for every chunk.
  const int64_t grain = batch == 1 ? per_chunk(w.cols, 1 << 18, kLutRows) : chunk_count(blocks, 8);
  parallel_for(blocks, grain, [&](int64_t, int64_t begin, int64_t end) {
    run(w, tables, steps, outliers, batch, bias, begin, end, y);
  });
}

void linear(const LutMatrix& w, LutMode mode, const float* x, int64_t batch, const float* bias, float* y) {
  if (w.layout == LutLayout::nibbles || w.layout == LutLayout::words) return by_nibbles(w, x, batch, bias, y);
  Scratch& s = scratch();
  const int columns = mode == LutMode::exact ? 1 : mode == LutMode::int16 ? 2 : 4; // of a unit
  // Whole steps: of 32 bits of a row's codes, or 16 units of a tile.
  const int64_t step_cols = w.layout == LutLayout::row_major ? 16 * columns : 32 / w.width;
  const int64_t padded = chunk_count(w.cols, step_cols) * step_cols, units = padded / columns;
  const int64_t groups = (w.cols + kGroup - 1) / kGroup;
  const int32_t* packed = (const int32_t*)x;
  if (mode != LutMode::exact || padded != w.cols) {
    s.rows.resize(size_t(batch * units));
    s.steps.resize(size_t(batch * groups));
    s.sums.resize(size_t(batch));
    s.outliers.resize(size_t(batch));
    const auto quantize16 = LC_DISPATCH_VNNI(lut_quantize16);
    const auto quantize8 = LC_DISPATCH_VNNI(lut_quantize8);
    parallel_for(batch, 8, [&](int64_t, int64_t begin, int64_t end) {
      for (int64_t m = begin; m < end; ++m) {
        int32_t* row = s.rows.data() + m * units;
        float* step = s.steps.data() + m * groups;
        if (mode == LutMode::exact) {
          if (w.cols) std::memcpy(row, x + m * w.cols, size_t(w.cols) * 4);
          std::fill(row + w.cols, row + padded, 0);
        } else if (mode == LutMode::int16) {
          quantize16(x + m * w.cols, w.cols, padded, (int16_t*)row, step, s.outliers.data() + m);
        } else {
          quantize8(x + m * w.cols, w.cols, padded, (int8_t*)row, step, s.sums.data() + m, s.outliers.data() + m);
        }
      }
    });
    packed = s.rows.data();
  }
  if (batch > 1) {
    s.panels.resize(size_t(batch * units));
    to_panels(packed, batch, units, LC_DISPATCH_VNNI(lut_panel)(), s.panels.data());
    packed = s.panels.data();
  }
  const auto exact = LC_DISPATCH_VNNI(lut_exact_blocks);
  const auto int16 = LC_DISPATCH_VNNI(lut_int16_blocks);
  const auto int8 = LC_DISPATCH_VNNI(lut_int8_blocks);
  const float* step = s.steps.data();
  const float* sum = s.sums.data();
  const LutOutliers* outliers = s.outliers.data();
  parallel_for(chunk_count(w.rows, kLutRows), per_chunk(w.cols, (1 << 18) / batch, kLutRows),
               [&](int64_t, int64_t begin, int64_t end) {
                 if (mode == LutMode::exact)
                   exact(w, packed, batch, bias, begin, end, y);
                 else if (mode == LutMode::int16)
                   int16(w, packed, step, outliers, batch, bias, begin, end, y);
                 else
                   int8(w, packed, step, sum, outliers, batch, bias, begin, end, y);
               });
}

} // namespace

int64_t lut_layout_bytes(int64_t rows, int64_t cols, int bits, LutLayout layout) {
  const int width = layout_width(bits);
  if (layout == LutLayout::row_major) return rows * chunk_count(cols * std::max(width, 4), 512) * 64;
  const int64_t blocks = chunk_count(rows, kLutRows);
  if (layout == LutLayout::nibbles || layout == LutLayout::words) return blocks * steps16(cols, width) * 128;
  return blocks * steps(cols, width) * 256;
}

void lut_repack(const int32_t* words, int64_t rows, int64_t cols, int bits, LutLayout layout, uint8_t* out) {
  const auto unpack = LC_DISPATCH(unpack_codes_range);
  const int64_t stride = (cols * bits + 31) / 32, bytes = lut_layout_bytes(kLutRows, cols, bits, layout);
  const int width = layout == LutLayout::row_major ? std::max(layout_width(bits), 4) : layout_width(bits);
  parallel_for(chunk_count(rows, kLutRows), 1, [&](int64_t b, int64_t, int64_t) {
    std::vector<uint8_t> codes(size_t(cols), 0);
    uint8_t* to = out + b * bytes;
    const int64_t last = std::min(rows, (b + 1) * kLutRows);
    // No memset, here and below: with no columns there may be no memory.
    std::fill_n(to, layout == LutLayout::row_major ? bytes / kLutRows * (last - b * kLutRows) : bytes, uint8_t(0));
    for (int64_t o = b * kLutRows; o < last; ++o) {
      unpack((const uint8_t*)(words + o * stride), cols, bits, codes.data());
      const int row = int(o % kLutRows);
      if (layout == LutLayout::nibbles) {
        repack_nibbles(codes.data(), cols, width, row, to);
      } else if (layout == LutLayout::words) {
        repack_words(codes.data(), cols, width, row, to);
      } else if (layout == LutLayout::row_major) {
        uint8_t* at = to + row * (bytes / kLutRows);
        for (int64_t i = 0; i < cols; ++i) at[i * width / 8] |= uint8_t(codes[size_t(i)] << (i * width % 8));
      } else {
        repack_steps(codes.data(), cols, width, layout, row, to);
      }
    }
  });
}

LutLayout lut_nibble_layout() { return LC_DISPATCH_VNNI(lut_nibble_layout)(); }

void lut_linear(const LutMatrix& w, LutMode mode, const float* x, int64_t batch, const float* bias, float* y) {
  for (int64_t m = 0; m < batch; m += kLutBatch, x += kLutBatch * w.cols, y += kLutBatch * w.rows)
    linear(w, mode, x, std::min(kLutBatch, batch - m), bias, y);
}

void lut_decode(const int32_t* words, int64_t rows, int64_t cols, int bits, const float* codebook, int k,
                float* weight) {
  const auto kernel = LC_DISPATCH(lut_decode_range);
  parallel_for(rows, 8 * per_chunk(cols, 1 << 16, 8), [&](int64_t, int64_t begin, int64_t end) {
    kernel(words, cols, bits, codebook, k, begin, end, weight);
  });
}

} // namespace lc::cpu
