#include "topk_select.h"

#include <algorithm>

#include "parallel.h"

namespace lc::cpu::topk {
namespace {

constexpr int64_t kLine = 16; // floats sampled together: one cache line

int64_t draw_sample(const Problem& problem, uint32_t* keys) {
  const int64_t n = problem.n, least = std::min<int64_t>(n / 16, 1 << 16);
  const int64_t lines = std::clamp<int64_t>(n / 64, least, kLargestSample) / kLine;
  const double stride = double(n) / double(lines);
  constexpr int64_t kBatch = 64; // lines fetched together, to wait for memory once
  const float* from[kBatch];
  const float* scores[kBatch];
  uint32_t random = 12345;
  size_t c = 0;
  int64_t begin = 0, size = 0; // where chunk c begins in the list
  for (int64_t line = 0; line < lines; line += kBatch) {
    const int64_t many = std::min(kBatch, lines - line);
    int64_t taken = 0;
    for (int64_t b = 0; b < many; ++b) {
      random = random * 1664525u + 1013904223u;
      const auto at = std::min(n - 1, int64_t((double(line + b) + double(random) / 4294967296.0) * stride));
      while (at >= begin + problem.chunks[c].range.n) begin += problem.chunks[c++].range.n;
      const PruneRange& range = problem.chunks[c].range;
      if (range.n < kLine) continue;
      const int64_t first = std::min(at - begin, range.n - kLine);
      from[taken] = range.x + first;
      scores[taken] = range.score ? range.score + first : nullptr;
      __builtin_prefetch(from[taken]);
      if (range.score) __builtin_prefetch(scores[taken]);
      ++taken;
    }
    for (int64_t b = 0; b < taken; ++b)
      for (int64_t i = 0; i < kLine; ++i)
        keys[size++] = key_of({from[b], scores[b], kLine, nullptr, nullptr, nullptr}, problem.score, i);
  }
  return size;
}

// Keys are the bits of magnitudes.
PruneRange as_range(const uint32_t* keys, int64_t n) {
  return {reinterpret_cast<const float*>(keys), nullptr, n, nullptr, nullptr, nullptr};
}

// Order statistics of the sample, by rank from the top. A coarser sample of it brackets the ranks asked for, and the
// pass over the data, used on the sample, lists what is in that bracket.
class Ranks {
public:
  Ranks(uint32_t* keys, int64_t m, double f, Workspace& work) : keys_(keys), m_(m), list_(work.keys.room(m + 2)) {
    if (m < 2 * kLeastCoarse) return;
    uint32_t coarse[kMostCoarse];
    const int64_t c = std::min(m, std::clamp<int64_t>(m / 16, kLeastCoarse, kMostCoarse)), stride = m / c;
    for (int64_t i = 0; i < c; ++i) coarse[i] = keys[i * stride];
    const double spread = 6 * std::sqrt(double(c) * f * (1 - f)) + 4;
    const auto top = int64_t(double(c) * f - spread), bottom = int64_t(double(c) * f + spread);
    const uint32_t high = top < 1 ? kMagnitude : select(coarse, c, top);
    const uint32_t low = bottom > c ? 0 : select(coarse, c, bottom);
    const TopkCounts counts =
        LC_DISPATCH(topk_pass)(as_range(keys, m), Score::magnitude, low, high + 1, high, false, list_);
    above_ = counts.kept, listed_ = counts.listed;
    for (int64_t i = 0; i < listed_; ++i) list_[i] = keys[list_[i]];
  }

  uint32_t operator()(double rank) {
    const int64_t r = std::clamp<int64_t>(int64_t(rank), 1, m_);
    return above_ < r && r <= above_ + listed_ ? select(list_, listed_, r - above_) : select(keys_, m_, r);
  }

private:
  static constexpr int64_t kLeastCoarse = 1024, kMostCoarse = 8192;
  uint32_t* keys_;
  int64_t m_;
  uint32_t* list_;
  int64_t above_ = 0, listed_ = 0;
};

} // namespace

// One level of bins leaves few enough to select among.
uint32_t select(uint32_t* keys, int64_t n, int64_t rank) {
  constexpr int kBins = 2048;
  if (n > 2 * kBins) {
    const auto [least, most] = std::minmax_element(keys, keys + n);
    const uint32_t low = *least, high = *most;
    int shift = 0;
    while ((high - low) >> shift >= kBins) ++shift;
    uint32_t histogram[kBins] = {};
    for (int64_t i = 0; i < n; ++i) ++histogram[(keys[i] - low) >> shift];
    uint32_t bin = kBins - 1;
    for (; rank > histogram[bin]; --bin) rank -= histogram[bin];
    if (shift == 0) return low + bin;
    int64_t left = 0;
    for (int64_t i = 0; i < n; ++i) { // swaps, and no branch: where the few keys of the bin are cannot be predicted
      const uint32_t key = keys[i];
      keys[i] = keys[left];
      keys[left] = key;
      left += (key - low) >> shift == bin;
    }
    if (left < n) return select(keys, left, rank);
  }
  std::nth_element(keys, keys + (rank - 1), keys + n, std::greater<>());
  return keys[rank - 1];
}

uint32_t select(uint32_t* keys, int64_t n, int64_t rank, Workspace& work) {
  return Ranks(keys, n, double(rank) / double(n), work)(double(rank));
}

// Lines at a stride, each at a pseudo-random offset, stand in for a simple random sample.
Bracket sample_bracket(const Problem& problem, int64_t kappa) {
  uint32_t* keys = problem.work.sample.room(kLargestSample);
  const int64_t m = problem.work.sampled = draw_sample(problem, keys);
  if (m == 0) return {0, 0, 0, true}; // a list of tiny tensors
  const double f = double(kappa) / double(problem.n);
  const double rank = double(m) * f, spread = 5 * std::sqrt(double(m) * f * (1 - f)) + 2;
  Ranks at_rank(keys, m, f, problem.work);
  Bracket bracket{0, at_rank(rank), kMagnitude, false};
  // Off either end of the sample, nothing bounds the rank but the data itself.
  if (rank + spread < double(m)) bracket.low = at_rank(rank + spread);
  if (rank - spread > 1) bracket.high = at_rank(rank - spread);
  const uint32_t bounds[kTopkBounds] = {bracket.low, bracket.high + 1, 0, 0, 0, 0};
  int64_t counts[kTopkBounds];
  LC_DISPATCH(topk_count)(as_range(keys, m), Score::magnitude, bounds, counts);
  bracket.crowded = (counts[0] - counts[1]) * kCrowded > m;
  return bracket;
}

std::array<uint32_t, 3> candidates(const Problem& problem, uint32_t mid) {
  uint32_t below = 0, above = kMagnitude;
  const uint32_t* keys = problem.work.sample.data.get();
  for (int64_t i = 0; i < problem.work.sampled; ++i) {
    if (keys[i] < mid) below = std::max(below, keys[i]);
    if (keys[i] > mid) above = std::min(above, keys[i]);
  }
  return {below, mid, above};
}

// 11 + 10 + 10 bits.
uint32_t radix_select(const Problem& problem, int64_t kappa) {
  const auto kernel = LC_DISPATCH(topk_histogram);
  constexpr int kShift[] = {20, 10, 0}, kBits[] = {11, 10, 10};
  uint32_t prefix = 0;
  for (int level = 0; level < 3; ++level) {
    const uint32_t bins = 1u << kBits[level];
    // One histogram for a group of chunks: the sums are integers, so any grouping gives the same result.
    const int64_t groups = std::min<int64_t>(int64_t(problem.chunks.size()), omp_get_max_threads());
    std::vector<std::vector<uint32_t>> histograms(static_cast<size_t>(groups), std::vector<uint32_t>(bins));
    parallel_for(groups, 1, [&](int64_t group, int64_t, int64_t) {
      for (size_t c = size_t(group); c < problem.chunks.size(); c += size_t(groups))
        kernel(problem.chunks[c].range, problem.score, kShift[level] + kBits[level], prefix, kShift[level], bins,
               histograms[size_t(group)].data());
    });
    for (uint32_t bin = bins; bin-- > 0;) {
      int64_t count = 0;
      for (const auto& histogram : histograms) count += histogram[bin];
      if (count >= kappa) {
        prefix = (prefix << kBits[level]) | bin;
        break;
      }
      kappa -= count;
    }
  }
  return prefix;
}

} // namespace lc::cpu::topk
