#include "assign.h"

#include <cmath>

#include "parallel.h"

namespace lc::cpu {

void assign(const float* x, int64_t n, const float* mids, int k, uint8_t* codes) {
  const auto kernel = LC_DISPATCH(assign_range);
  parallel_for(n, 1 << 16,
               [&](int64_t, int64_t begin, int64_t end) { kernel(x + begin, end - begin, mids, k, codes + begin); });
}

void decode(const uint8_t* codes, int64_t n, const float* codebook, int k, float* x) {
  const auto kernel = LC_DISPATCH(decode_range);
  parallel_for(n, 1 << 16, [&](int64_t, int64_t begin, int64_t end) {
    kernel(codes + begin, end - begin, codebook, k, x + begin);
  });
}

void midpoints(const float* codebook, int k, float* mids) {
  for (int j = 0; j + 1 < k; ++j) {
    // Two floats far apart have no exact sum in double either: `error` is what is missing (Knuth's TwoSum).
    const double a = codebook[j], b = codebook[j + 1], sum = a + b, part = sum - a;
    const double error = (a - (sum - part)) + (b - part);
    mids[j] = float(sum / 2);
    const double mid = mids[j];
    if (mid > sum / 2 || (mid == sum / 2 && error < 0)) mids[j] = std::nextafterf(mids[j], -INFINITY);
  }
}

} // namespace lc::cpu
