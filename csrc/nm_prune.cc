#include "nm_prune.h"

#include <atomic>

#include "parallel.h"

namespace lc::cpu {

bool nm_prune(const PruneRange& all, Score score, int64_t inner, int n, int m) {
  const int64_t block = m * inner;
  int64_t grain = std::max<int64_t>(1, (1 << 16) / block);
  if (block % 32) grain = (grain + 31) / 32 * 32; // a chunk begins at a word of the mask bits
  const bool stream = all.n >= kStreamFrom && uintptr_t(all.values) % 64 == 0 && (inner == 1 || inner % 32 == 0);
  const auto rows = LC_DISPATCH(nm_rows);
  const auto columns = LC_DISPATCH(nm_columns);
  std::atomic<bool> valid = true;
  parallel_for(all.n / block, grain, [&](int64_t, int64_t begin, int64_t end) {
    const int64_t at = begin * block;
    const PruneRange range{all.x + at,
                           all.score ? all.score + at : nullptr,
                           (end - begin) * block,
                           all.values ? all.values + at : nullptr,
                           all.bytes ? all.bytes + at : nullptr,
                           all.bits ? all.bits + at / 32 : nullptr};
    const bool aligned = stream && at % 16 == 0;
    if (!(inner == 1 ? rows(range, score, n, m, aligned) : columns(range, score, inner, n, m, aligned))) valid = false;
  });
  return valid;
}

} // namespace lc::cpu
