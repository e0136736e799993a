#include "sparse_linear.h"

#include <cstring>
#include <vector>

#include "parallel.h"
#include "workspace.h"

namespace lc::cpu {
namespace {

// The first row of [begin, end) whose columns do not ascend or are not in [0, cols), or -1.
template <class C>
int64_t first_bad(const C* columns, const int32_t* row_starts, int64_t cols, int64_t begin, int64_t end) {
  for (int64_t o = begin; o < end; ++o) {
    int64_t least = 0;
    bool good = true;
    for (int32_t j = row_starts[o]; j < row_starts[o + 1]; ++j) {
      good &= columns[j] >= least;
      least = int64_t(columns[j]) + 1;
    }
    if (!good || least > cols) return o;
  }
  return -1;
}

template <class V, class C, class D> void fill(const V* values, const C* columns, const int32_t* row_starts,
                                               int64_t rows, int64_t cols, const int32_t* order, const int64_t* starts,
                                               int64_t slice, V* values_out, D* columns_out) {
  for (int lane = 0; lane < 16; ++lane) {
    int64_t at = starts[slice];
    if (16 * slice + lane < rows) {
      const int32_t o = order[16 * slice + lane];
      for (int32_t j = row_starts[o]; j < row_starts[o + 1]; ++j, ++at)
        values_out[16 * at + lane] = values[j], columns_out[16 * at + lane] = D(columns[j]);
    }
    for (; at < starts[slice + 1]; ++at) values_out[16 * at + lane] = 0, columns_out[16 * at + lane] = D(cols);
  }
}

constexpr int64_t kChunk = 64; // rows that are cut into pieces together

// The entries of row o in columns [0, limit), by their end.
template <class C> int32_t end_of(const C* columns, const int32_t* row_starts, int64_t o, int32_t at, int64_t limit) {
  while (at < row_starts[o + 1] && columns[at] < limit) ++at;
  return at;
}

template <class C> void fill_pieces(const float* values, const C* columns, const int32_t* row_starts, int64_t rows,
                                    int64_t cols, int64_t block, int64_t chunk, int64_t piece, float* values_out,
                                    uint8_t* offsets_out, uint8_t* rows_out, uint16_t* lengths_out) {
  const int64_t first = chunk * kChunk, n = std::min(kChunk, rows - first);
  int64_t at = row_starts[first];
  int32_t begin[kChunk], end[kChunk];
  for (int64_t r = 0; r < n; ++r) end[r] = row_starts[first + r];
  for (int64_t c0 = 0; c0 < cols; c0 += block) {
    uint8_t order[kChunk];
    int held = 0;
    for (int64_t r = 0; r < n; ++r) {
      begin[r] = end[r];
      end[r] = end_of(columns, row_starts, first + r, begin[r], c0 + block);
      if (end[r] > begin[r]) order[held++] = uint8_t(r);
    }
    std::stable_sort(order, order + held, [&](uint8_t a, uint8_t b) { return end[a] - begin[a] > end[b] - begin[b]; });
    for (int i = 0; i < held; ++i, ++piece) {
      const int r = order[i];
      rows_out[piece] = uint8_t(r), lengths_out[piece] = uint16_t(end[r] - begin[r]);
      for (int32_t j = begin[r]; j < end[r]; ++j, ++at)
        values_out[at] = values[j], offsets_out[at] = uint8_t(columns[j] - c0);
    }
  }
}

} // namespace

int64_t sparse_linear_check(const void* columns, int column_bytes, const int32_t* row_starts, int64_t rows,
                            int64_t cols, int64_t nnz) {
  if (row_starts[0] != 0 || row_starts[rows] != nnz) return -2;
  for (int64_t o = 0; o < rows; ++o)
    if (row_starts[o + 1] < row_starts[o]) return -2;
  const int64_t grain = 64;
  std::vector<int64_t> bad(size_t(chunk_count(rows, grain)), -1);
  parallel_for(rows, grain, [&](int64_t chunk, int64_t begin, int64_t end) {
    bad[size_t(chunk)] = column_bytes == 2
                             ? first_bad(static_cast<const uint16_t*>(columns), row_starts, cols, begin, end)
                             : first_bad(static_cast<const int32_t*>(columns), row_starts, cols, begin, end);
  });
  for (const int64_t row : bad)
    if (row >= 0) return row;
  return -1;
}

int64_t sparse_linear_slices(const int32_t* row_starts, int64_t rows, int32_t* order, int64_t* starts) {
  // A counting sort, stable, the longest rows first.
  int32_t longest = 0;
  for (int64_t o = 0; o < rows; ++o) longest = std::max(longest, row_starts[o + 1] - row_starts[o]);
  std::vector<int64_t> at(size_t(longest) + 2, 0);
  for (int64_t o = 0; o < rows; ++o) ++at[size_t(longest - (row_starts[o + 1] - row_starts[o])) + 1];
  for (size_t i = 1; i < at.size(); ++i) at[i] += at[i - 1];
  for (int64_t o = 0; o < rows; ++o) order[at[size_t(longest - (row_starts[o + 1] - row_starts[o]))]++] = int32_t(o);
  const int64_t slices = (rows + 15) / 16;
  for (int64_t i = rows; i < 16 * slices; ++i) order[i] = -1;
  starts[0] = 0;
  for (int64_t s = 0; s < slices; ++s) {
    const int32_t o = order[16 * s];
    starts[s + 1] = starts[s] + row_starts[o + 1] - row_starts[o];
  }
  return starts[slices];
}

void sparse_linear_layout(const void* values, bool bfloat, const void* columns, int column_bytes,
                          const int32_t* row_starts, int64_t rows, int64_t cols, const int32_t* order,
                          const int64_t* starts, void* values_out, void* columns_out, int bytes_out) {
  parallel_for((rows + 15) / 16, 16, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) {
      const auto with = [&](const auto* v, const auto* c, auto* out) {
        using V = std::remove_const_t<std::remove_pointer_t<decltype(v)>>;
        fill(v, c, row_starts, rows, cols, order, starts, s, static_cast<V*>(values_out), out);
      };
      const auto of_values = [&](const auto* v) {
        if (column_bytes == 4)
          with(v, static_cast<const int32_t*>(columns), static_cast<int32_t*>(columns_out));
        else if (bytes_out == 4)
          with(v, static_cast<const uint16_t*>(columns), static_cast<int32_t*>(columns_out));
        else
          with(v, static_cast<const uint16_t*>(columns), static_cast<uint16_t*>(columns_out));
      };
      if (bfloat)
        of_values(static_cast<const uint16_t*>(values));
      else
        of_values(static_cast<const float*>(values));
    }
  });
}

void sparse_linear_slice(const float* x, const void* values, bool bfloat, const void* columns, int column_bytes,
                         const int32_t* order, const int64_t* starts, int64_t rows, int64_t cols, const float* bias,
                         bool accumulate, Activation f, float* y) {
  static thread_local Workspace kept;
  float* const copy = kept.floats(cols + 1);
  std::copy_n(x, cols, copy);
  copy[cols] = 0;
  const int64_t slices = (rows + 15) / 16;
  const auto kernel = LC_DISPATCH(sparse_linear_one);
  // About 2^15 entries a chunk on average.
  const int64_t grain = std::max<int64_t>(1, (1 << 11) * slices / std::max<int64_t>(1, starts[slices]));
  parallel_for(slices, grain, [&](int64_t, int64_t begin, int64_t end) {
    kernel(copy, values, bfloat, columns, column_bytes, order, starts, rows, bias, accumulate, begin, end, y);
  });
  // The rows of a chunk lie apart: picking them one by one costs more than going over the whole of y, which is small.
  if (f != Activation::none) activation(f, y, nullptr, 1, rows, y);
}

int64_t sparse_linear_count_pieces(const void* columns, int column_bytes, const int32_t* row_starts, int64_t rows,
                                   int64_t cols, int64_t block, uint8_t* counts, int64_t* piece_starts) {
  const int64_t chunks = chunk_count(rows, kChunk), blocks = chunk_count(cols, block);
  std::fill_n(counts, chunks * blocks, uint8_t(0));
  const auto count = [&](const auto* c, int64_t chunk) {
    uint8_t* const to = counts + chunk * blocks;
    for (int64_t o = chunk * kChunk; o < std::min(rows, (chunk + 1) * kChunk); ++o)
      for (int32_t j = row_starts[o]; j < row_starts[o + 1];) {
        const int64_t b = c[j] / block;
        ++to[b];
        j = end_of(c, row_starts, o, j, (b + 1) * block);
      }
  };
  parallel_for(chunks, 1, [&](int64_t, int64_t begin, int64_t) {
    if (column_bytes == 2)
      count(static_cast<const uint16_t*>(columns), begin);
    else
      count(static_cast<const int32_t*>(columns), begin);
  });
  piece_starts[0] = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    piece_starts[chunk + 1] = piece_starts[chunk];
    for (int64_t b = 0; b < blocks; ++b) piece_starts[chunk + 1] += counts[chunk * blocks + b];
  }
  return piece_starts[chunks];
}

void sparse_linear_fill_pieces(const float* values, const void* columns, int column_bytes, const int32_t* row_starts,
                               int64_t rows, int64_t cols, int64_t block, const int64_t* piece_starts,
                               float* values_out, uint8_t* offsets_out, uint8_t* rows_out, uint16_t* lengths_out) {
  parallel_for(chunk_count(rows, kChunk), 1, [&](int64_t chunk, int64_t, int64_t) {
    const auto run = [&](const auto* c) {
      fill_pieces(values, c, row_starts, rows, cols, block, chunk, piece_starts[chunk], values_out, offsets_out,
                  rows_out, lengths_out);
    };
    if (column_bytes == 2)
      run(static_cast<const uint16_t*>(columns));
    else
      run(static_cast<const int32_t*>(columns));
  });
}

void sparse_linear_in_pieces(const float* x, int64_t batch, const SparsePieces& pieces, const int32_t* row_starts,
                             int64_t rows, int64_t cols, const float* bias, bool accumulate, Activation f, float* y) {
  const auto transpose = LC_DISPATCH(sparse_linear_panel);
  const auto kernel = LC_DISPATCH(sparse_linear_pieces);
  static thread_local Workspace kept;
  for (int64_t first = 0; first < batch; first += 64) {
    const int width = batch - first <= 32 ? 32 : 64;
    float* const panel = kept.floats(cols * width);
    parallel_for(cols, 512, [&](int64_t, int64_t begin, int64_t end) {
      transpose(x, batch, cols, first, width, begin, end, panel);
    });
    parallel_for(chunk_count(rows, kChunk), 1, [&](int64_t, int64_t begin, int64_t end) {
      kernel(panel, width, batch, first, pieces, row_starts, rows, cols, bias, accumulate, begin, end, y);
      activate(f, rows, first, std::min(batch, first + width), kChunk * begin, std::min(rows, kChunk * end), y);
    });
  }
}

void sparse_linear(const float* x, int64_t batch, const float* values, const void* columns, int column_bytes,
                   const int32_t* row_starts, int64_t rows, int64_t cols, const float* bias, bool accumulate,
                   Activation f, float* y) {
  if (rows == 0 || batch == 0) return;
  // About 2^14 entries a chunk, in whole blocks of 16 rows: a function of the shape only.
  const int64_t per_row = row_starts[rows] / rows + 1,
                grain = (std::max<int64_t>(1 << 14, per_row) / per_row + 15) / 16 * 16;
  const auto transpose = LC_DISPATCH(sparse_linear_panel);
  const auto kernel = LC_DISPATCH(sparse_linear_many);
  static thread_local Workspace kept;
  for (int64_t first = 0; first < batch; first += 16) {
    const int width = batch - first <= 8 ? 8 : 16;
    float* const panel = kept.floats(cols * width);
    parallel_for(cols, 512, [&](int64_t, int64_t begin, int64_t end) {
      transpose(x, batch, cols, first, width, begin, end, panel);
    });
    parallel_for(rows, grain, [&](int64_t, int64_t begin, int64_t end) {
      kernel(panel, width, batch, first, values, columns, column_bytes, row_starts, rows, bias, accumulate, begin, end,
             y);
      activate(f, rows, first, std::min(batch, first + width), begin, end, y);
    });
  }
}

} // namespace lc::cpu
