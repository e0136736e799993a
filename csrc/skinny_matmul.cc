#include "skinny_matmul.h"

#include "parallel.h"

namespace lc::cpu {

void skinny_matmul(const float* a, int64_t m, int64_t n, bool transpose, const float* x, int64_t b, bool add,
                   float* y) {
  const auto kernel = LC_DISPATCH(skinny_matmul_range);
  if (!transpose) {
    parallel_for(m, 192, [&](int64_t, int64_t begin, int64_t end) {
      kernel(a + begin * n, n, 1, end - begin, n, x, b, add, y + begin * b);
    });
    return;
  }
  // 2 KiB of each row of a at a time: whole pages would leave one thread without work for n = 1024.
  parallel_for(n, 512, [&](int64_t, int64_t begin, int64_t end) {
    kernel(a + begin, 1, n, end - begin, m, x, b, add, y + begin * b);
  });
}

} // namespace lc::cpu
