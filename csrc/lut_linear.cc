#include "lut_linear.h"

#include "parallel.h"

namespace lc::cpu {
namespace {

// About `weights` weights in a chunk, in whole blocks of 8 rows; a function of the shape only.
int64_t rows_per_chunk(int64_t cols, int64_t weights) {
  return std::max<int64_t>(8, weights / std::max<int64_t>(cols, 1) / 8 * 8);
}

} // namespace

void lut_linear(const float* x, int64_t batch, const int32_t* words, int64_t rows, int64_t cols, int bits,
                const float* codebook, int k, const float* bias, float* y) {
  const auto kernel = LC_DISPATCH(lut_linear_range);
  // The 1-bit kernel makes tables of x once a chunk, which takes rows to pay.
  const int64_t grain = std::max<int64_t>(rows_per_chunk(cols, 1 << 16), bits == 1 ? 256 : 8);
  parallel_for(rows, grain, [&](int64_t, int64_t begin, int64_t end) {
    kernel(x, batch, words, rows, cols, bits, codebook, k, bias, begin, end, y);
  });
}

void lut_decode(const int32_t* words, int64_t rows, int64_t cols, int bits, const float* codebook, int k,
                float* weight) {
  const auto kernel = LC_DISPATCH(lut_decode_range);
  parallel_for(rows, rows_per_chunk(cols, 1 << 16), [&](int64_t, int64_t begin, int64_t end) {
    kernel(words, cols, bits, codebook, k, begin, end, weight);
  });
}

} // namespace lc::cpu
