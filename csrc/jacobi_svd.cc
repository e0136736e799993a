#include "jacobi_svd.h"

#include "parallel.h"

#include <memory>

namespace lc::cpu {

void jacobi_svd(const float* a, int64_t count, int64_t m, int64_t n, int64_t rank, float* left, float* values,
                float* right) {
  const bool wide = m <= n;
  const int64_t side = std::min(m, n), length = std::max(m, n), lanes = LC_DISPATCH(jacobi_lanes)();
  const auto kernel = LC_DISPATCH(jacobi_svd_group);
  parallel_for(count, lanes, [&](int64_t, int64_t begin, int64_t end) {
    const int64_t floats = side * (length + side + 1) * lanes;
    const std::unique_ptr<float[]> memory(new float[size_t(floats + 16)]);
    float* work = memory.get(); // unaligned vectors would straddle two lines of the cache
    while (reinterpret_cast<uintptr_t>(work) % 64) ++work;
    float* small = (wide ? left : right) + begin * rank * side;
    float* large = (wide ? right : left) + begin * rank * length;
    kernel(a + begin * m * n, end - begin, side, length, wide ? n : 1, wide ? 1 : n, rank, work, small,
           values + begin * rank, large);
  });
}

} // namespace lc::cpu
