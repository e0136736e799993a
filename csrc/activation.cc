#include "activation.h"

#include "parallel.h"

namespace lc::cpu {

void activation(Activation f, const float* x, const float* bias, int64_t batch, int64_t rows, float* y) {
  constexpr int64_t kGrain = 1 << 13;
  const auto run = LC_DISPATCH(activation_range);
  if (!bias) rows *= batch, batch = 1; // one row
  const int64_t pieces = chunk_count(rows, kGrain);
  parallel_for(batch * pieces, std::max<int64_t>(1, kGrain / std::max<int64_t>(rows, 1)),
               [&](int64_t, int64_t begin, int64_t end) {
                 for (int64_t c = begin; c < end; ++c) {
                   const int64_t at = c % pieces * kGrain, all = c / pieces * rows + at;
                   run(f, x + all, bias ? bias + at : nullptr, std::min(kGrain, rows - at), y + all);
                 }
               });
}

void activate(Activation f, int64_t rows, int64_t first, int64_t last, int64_t begin, int64_t end, float* y) {
  if (f == Activation::none) return;
  const auto run = LC_DISPATCH(activation_range);
  for (int64_t i = first; i < last; ++i) run(f, y + i * rows + begin, nullptr, end - begin, y + i * rows + begin);
}

} // namespace lc::cpu
