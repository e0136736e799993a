#include "sparse_linear.h"

#include "parallel.h"

namespace lc::cpu {
namespace {

int panel_width(int64_t batch) { return batch <= 8 ? 8 : batch <= 16 ? 16 : 32; }

} // namespace

int64_t sparse_linear_panel_size(int64_t batch, int64_t cols) { return batch <= 1 ? 0 : panel_width(batch) * cols; }

void sparse_linear(const float* x, int64_t batch, const float* values, const void* columns, int column_bytes,
                   const int32_t* row_starts, int64_t rows, int64_t cols, const float* bias, float* panel, float* y) {
  if (rows == 0 || batch == 0) return;
  // About 2^14 entries a chunk, in whole blocks of 8 rows: a function of the shape only.
  const int64_t per_row = row_starts[rows] / rows + 1,
                grain = (std::max<int64_t>(1 << 14, per_row) / per_row + 7) / 8 * 8;
  if (batch == 1) {
    const auto kernel = LC_DISPATCH(sparse_linear_one);
    parallel_for(rows, grain, [&](int64_t, int64_t begin, int64_t end) {
      kernel(x, values, columns, column_bytes, row_starts, bias, begin, end, y);
    });
    return;
  }
  const auto transpose = LC_DISPATCH(sparse_linear_panel);
  const auto kernel = LC_DISPATCH(sparse_linear_many);
  // One panel at a time: 32 rows of 4096 columns are as much as the second-level cache of a current core holds.
  const int width = panel_width(batch);
  for (int64_t m0 = 0; m0 < batch; m0 += width) {
    parallel_for(cols, 512,
                 [&](int64_t, int64_t begin, int64_t end) { transpose(x, batch, cols, m0, width, begin, end, panel); });
    parallel_for(rows, grain, [&](int64_t, int64_t begin, int64_t end) {
      kernel(panel, width, batch, m0, values, columns, column_bytes, row_starts, rows, bias, begin, end, y);
    });
  }
}

} // namespace lc::cpu
