#include "../skinny_matmul.h"

#include "simd.h"

namespace lc::LC_ISA {
namespace {

constexpr int kColumns = 16;                // of y in a tile
constexpr int kRows = 6;                    // 6 x 16 accumulators are 12 registers of AVX2
constexpr int kVectors = kColumns / kLanes; // in a row of a tile

// One tile of y: R rows, 16 columns. The matrix is read where it lies, an element at a time: each is multiplied with 16
// columns of x, so that packing it first, as a general product does, would cost as much again as the product.
template <int R> LC_INLINE void tile(const float* a, int64_t row_step, int64_t step, int64_t k, const float* x,
                                     int64_t b, float* y, bool fresh, int ahead) {
  VF sum[R][kVectors];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < kVectors; ++v) sum[r][v] = fresh ? VF{} : load<VF>(y + r * b + v * kLanes);
  for (int64_t l = 0; l < k; ++l) {
    const float* entry = a + l * step;
    __builtin_prefetch(entry + ahead);
    VF row[kVectors];
    for (int v = 0; v < kVectors; ++v) row[v] = load<VF>(x + l * b + v * kLanes);
    for (int r = 0; r < R; ++r) {
      const VF e = splat(entry[r * row_step]);
      for (int v = 0; v < kVectors; ++v) sum[r][v] = fma(e, row[v], sum[r][v]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < kVectors; ++v) store(y + r * b + v * kLanes, sum[r][v]);
}

} // namespace

void skinny_matmul_range(const float* a, int64_t row_step, int64_t step, int64_t m, int64_t k, const float* x,
                         int64_t b, bool add, float* y) {
  // Along the rows of a: the rows of x that one tile uses stay in the second cache. Across them: the lines of a that
  // one tile touches stay in the first, for the next tiles; each is on another page, so no hardware prefetcher follows.
  const int64_t block = step == 1 ? 1024 : 128;
  const int ahead = step == 1 ? 64 : 16;
  for (int64_t i = 0; k == 0 && !add && i < m * b; ++i) y[i] = 0;
  for (int64_t begin = 0; begin < k; begin += block) {
    const int64_t count = k - begin < block ? k - begin : block;
    const bool fresh = begin == 0 && !add;
    for (int64_t i = 0; i < m; i += kRows)
      for (int64_t j = 0; j < b; j += kColumns) {
        const float* from = a + i * row_step + begin * step;
        const float* with = x + begin * b + j;
        float* to = y + i * b + j;
        switch (m - i) {
        case 1:
          tile<1>(from, row_step, step, count, with, b, to, fresh, ahead);
          break;
        case 2:
          tile<2>(from, row_step, step, count, with, b, to, fresh, ahead);
          break;
        case 3:
          tile<3>(from, row_step, step, count, with, b, to, fresh, ahead);
          break;
        case 4:
          tile<4>(from, row_step, step, count, with, b, to, fresh, ahead);
          break;
        case 5:
          tile<5>(from, row_step, step, count, with, b, to, fresh, ahead);
          break;
        default:
          tile<kRows>(from, row_step, step, count, with, b, to, fresh, ahead);
        }
      }
  }
}

} // namespace lc::LC_ISA
