#include "rate_distortion.h"

#include "parallel.h"
#include "tail_partitions.h"

namespace lc::cpu {

bool rate_distortion(const std::vector<const float*>& x, const std::vector<int64_t>& n,
                     const std::vector<int>& codewords, const std::vector<int64_t>& nonzeros, double* distortions) {
  int64_t total = 0;
  for (const int64_t size : n) total += size;
  const Histogram histogram(pieces_of(x, {}, n, {}), total, /*center_zero=*/true);
  if (!histogram.finite) return false;
  const TailPartitions tails(histogram, codewords.back());
  const size_t columns = nonzeros.size();
  parallel_for(int64_t(codewords.size() * columns), 1, [&](int64_t entry, int64_t, int64_t) {
    const size_t b = size_t(entry) / columns, j = size_t(entry) % columns;
    const double gain = tails.best(codewords[b], nonzeros[j]).gain;
    distortions[entry] = std::max(0.0, histogram.squares - gain);
  });
  // Exact arithmetic would give this order; rounding may not.
  for (size_t b = 0; b < codewords.size(); ++b)
    for (size_t j = 0; j < columns; ++j) {
      double& d = distortions[b * columns + j];
      if (b > 0) d = std::min(d, distortions[(b - 1) * columns + j]);
      if (j > 0) d = std::min(d, distortions[b * columns + j - 1]);
    }
  return true;
}

} // namespace lc::cpu
