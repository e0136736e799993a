#include "gram_product.h"

#include "parallel.h"

namespace lc::cpu {
namespace {

/// Rows of a for one task: at most 16 tasks, since each has sums of its own.
int64_t grain_for(int64_t m) { return std::max<int64_t>(132, (m + 95) / 96 * 6); }

} // namespace

int64_t gram_product_work(int64_t m, int64_t n, int64_t b) { return chunk_count(m, grain_for(m)) * b * n; }

void gram_product(const float* a, int64_t m, int64_t n, const float* v, int64_t b, float* p, int64_t stride, bool add,
                  float sign, float* x, float* work) {
  const int64_t grain = grain_for(m);
  const auto kernel = LC_DISPATCH(gram_product_range);
  parallel_for(m, grain, [&](int64_t chunk, int64_t begin, int64_t end) {
    kernel(a + begin * n, end - begin, n, v, b, p + begin, stride, work + chunk * b * n);
  });
  LC_DISPATCH(add_parts)(work, chunk_count(m, grain), b * n, add, sign, x);
}

} // namespace lc::cpu
