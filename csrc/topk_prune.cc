// The common path reads the data once. A sample of the keys gives a bracket [low, high] that holds the threshold almost
// surely, and an estimate `mid`. One pass writes the result as if the threshold were mid and lists the few entries in
// the bracket; the exact threshold is selected among those; then only listed entries between mid and the true
// threshold are repaired. If too much falls into the bracket (heavy ties), a counting pass over a few values of the
// sample tells whether one of them is the threshold; if not, or if the bracket missed, a three-level radix histogram
// finds it. Then a pass writes the result, each chunk with its share of the ties.
#include "topk_prune.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>

#include "parallel.h"

namespace lc::cpu {
namespace {

constexpr int64_t kChunk = 1 << 16;
constexpr int64_t kSmallest = 1 << 14; // below this, a sample is not worth its noise
constexpr int64_t kLine = 16;          // floats sampled together: one cache line
constexpr int64_t kLargestSample = 1 << 18;
constexpr int64_t kCrowded = 32; // a list of more than n / kCrowded entries is given up

// ---- entries and their memory ---------------------------------------------------------------------------------------

float score_of(const PruneRange& range, Score score, int64_t i) {
  const float magnitude = std::fabs(range.x[i]);
  if (score == Score::magnitude) return magnitude;
  return score == Score::weighted ? range.score[i] * magnitude * magnitude : range.score[i];
}

uint32_t key_of(const PruneRange& range, Score score, int64_t i) {
  const float value = score_of(range, score, i);
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits & kMagnitude;
}

struct Buffer { // grows, and is never filled before use
  uint32_t* room(int64_t n) {
    if (n > size) data = std::make_unique_for_overwrite<uint32_t[]>(size_t(n)), size = n;
    return data.get();
  }
  std::unique_ptr<uint32_t[]> data;
  int64_t size = 0;
};

struct Lists { // of one thread: the listed entries of its chunks, one after the other
  Buffer keys, at;
  int64_t used = 0;
};

// Fresh memory would cost a page fault for each 4 KB, so it is kept for the next call of the thread.
struct Workspace {
  std::vector<Lists> lists;
  Buffer keys, bits, sample;
  int64_t sampled = 0; // keys in the sample
};

struct Chunk {
  PruneRange range;
  size_t tensor;
  TopkCounts counts{};
  const uint32_t *keys = nullptr, *at = nullptr; // its part of the lists
};

struct Problem {
  std::vector<Chunk> chunks;
  Score score;
  int64_t n;
  bool stream;
  Workspace& work;
};

Problem make_problem(const std::vector<PruneRange>& tensors, Score score, Workspace& work) {
  Problem problem{{}, score, 0, true, work};
  for (size_t t = 0; t < tensors.size(); ++t) {
    const PruneRange& all = tensors[t];
    problem.n += all.n;
    problem.stream &= uintptr_t(all.values) % 64 == 0;
    for (int64_t at = 0; at < all.n; at += kChunk)
      problem.chunks.push_back({{all.x + at, all.score ? all.score + at : nullptr, std::min(kChunk, all.n - at),
                                 all.values ? all.values + at : nullptr, all.bytes ? all.bytes + at : nullptr,
                                 all.bits ? all.bits + at / 32 : nullptr},
                                t});
  }
  problem.stream &= problem.n >= kStreamFrom;
  return problem;
}

void set_entry(const PruneRange& range, uint32_t at, bool keep) {
  if (range.values) range.values[at] = keep ? range.x[at] : 0.0f;
  if (range.bytes) range.bytes[at] = keep;
  const uint32_t bit = 1u << (at % 32);
  if (range.bits) range.bits[at / 32] = keep ? range.bits[at / 32] | bit : range.bits[at / 32] & ~bit;
}

bool all_valid(const Problem& problem) {
  return std::all_of(problem.chunks.begin(), problem.chunks.end(), [](const Chunk& c) { return c.counts.valid; });
}

// ---- selection ------------------------------------------------------------------------------------------------------

// The rank-th largest of n keys, 1 <= rank <= n; reorders them. One level of bins leaves few enough to select among.
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

struct Bracket {
  uint32_t low, mid, high;
  bool crowded; // too much of the data is in it
};

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

// The wanted rank lies in the bracket with 5 standard deviations of a simple random sample to spare on either side.
// Lines at a stride, each at a pseudo-random offset, stand in for one.
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

// Values that the threshold is likely to be if many entries share them: mid, and its neighbours in the sample.
std::array<uint32_t, 3> candidates(const Problem& problem, uint32_t mid) {
  uint32_t below = 0, above = kMagnitude;
  const uint32_t* keys = problem.work.sample.data.get();
  for (int64_t i = 0; i < problem.work.sampled; ++i) {
    if (keys[i] < mid) below = std::max(below, keys[i]);
    if (keys[i] > mid) above = std::min(above, keys[i]);
  }
  return {below, mid, above};
}

// The kappa-th largest key of all the data: 11 + 10 + 10 bits.
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

// ---- the path of the sampled bracket --------------------------------------------------------------------------------

// Returns false, for the exact path to write everything again, if the bracket was no good.
bool prune_by_bracket(Problem& problem, const Bracket& bracket, int64_t kappa, uint32_t* threshold) {
  const auto kernel = LC_DISPATCH(topk_pass);
  const int64_t most = problem.n / kCrowded;
  std::vector<Lists>& lists = problem.work.lists;
  const auto threads = size_t(std::max(omp_get_max_threads(), omp_get_num_threads()));
  if (lists.size() < threads) lists.resize(threads);
  for (Lists& list : lists) list.used = 0;
  std::atomic<bool> crowded = false;
  parallel_for(int64_t(problem.chunks.size()), 1, [&](int64_t c, int64_t, int64_t) {
    if (crowded) return;
    Chunk& chunk = problem.chunks[size_t(c)];
    Lists& list = lists[size_t(omp_get_thread_num())];
    const int64_t room = most + kChunk + 2;
    uint32_t *keys = list.keys.room(room) + list.used, *at = list.at.room(room) + list.used;
    chunk.counts = kernel(chunk.range, problem.score, bracket.low, bracket.mid, bracket.high, problem.stream, at);
    chunk.keys = keys, chunk.at = at;
    list.used += chunk.counts.listed;
    for (int64_t i = 0; i < chunk.counts.listed; ++i) keys[i] = key_of(chunk.range, problem.score, at[i]);
    if (list.used > most) crowded = true;
  });
  if (crowded || !all_valid(problem)) return false;

  int64_t above = 0, listed = 0; // above: certain survivors, over the bracket
  for (const Chunk& chunk : problem.chunks) above += chunk.counts.kept, listed += chunk.counts.listed;
  uint32_t* keys = problem.work.keys.room(listed);
  for (const Lists& list : lists) keys = std::copy_n(list.keys.data.get(), list.used, keys);
  keys -= listed;
  above -= std::count_if(keys, keys + listed, [&](uint32_t key) { return key >= bracket.mid; });
  const int64_t wanted = kappa - above;
  if (wanted < 1 || wanted > listed) return false;
  *threshold = select(keys, listed, wanted);
  int64_t ties = wanted;
  for (const Chunk& chunk : problem.chunks)
    ties -= std::count_if(chunk.keys, chunk.keys + chunk.counts.listed, [&](uint32_t key) { return key > *threshold; });
  for (Chunk& chunk : problem.chunks)
    for (int64_t i = 0; i < chunk.counts.listed; ++i) {
      const uint32_t key = chunk.keys[i];
      const bool above = key > *threshold, tie = key == *threshold; // no branches: nobody guesses them
      const bool keep = above | (tie & (ties > 0));
      ties -= tie;
      if (keep == (key >= bracket.mid)) continue;
      set_entry(chunk.range, chunk.at[i], keep);
      chunk.counts.kept += keep ? 1 : -1;
    }
  return true;
}

// ---- the exact path: heavy ties, little data, a sample that misled --------------------------------------------------

using Counts = std::vector<std::array<int64_t, kTopkBounds>>; // of each chunk

Counts count_at_least(const Problem& problem, const uint32_t (&bounds)[kTopkBounds]) {
  const auto kernel = LC_DISPATCH(topk_count);
  Counts counts(problem.chunks.size());
  parallel_for(int64_t(counts.size()), 1, [&](int64_t c, int64_t, int64_t) {
    kernel(problem.chunks[size_t(c)].range, problem.score, bounds, counts[size_t(c)].data());
  });
  return counts;
}

// Which of the candidates the threshold is, with bounds 2 j and 2 j + 1 at candidate j and just above it; -1 if none.
int which_candidate(const Counts& counts, int64_t kappa) {
  for (int j = 0; j < kTopkBounds; j += 2) {
    int64_t reached = 0, above = 0;
    for (const auto& chunk : counts) reached += chunk[size_t(j)], above += chunk[size_t(j) + 1];
    if (above < kappa && kappa <= reached) return j / 2;
  }
  return -1;
}

bool prune_exactly(Problem& problem, const Bracket* bracket, int64_t kappa, uint32_t* threshold) {
  uint32_t bounds[kTopkBounds];
  Counts counts;
  int candidate = -1;
  if (bracket) {
    const auto likely = candidates(problem, bracket->mid);
    for (int j = 0; j < kTopkBounds; ++j) bounds[j] = likely[size_t(j) / 2] + uint32_t(j % 2);
    counts = count_at_least(problem, bounds);
    candidate = which_candidate(counts, kappa);
  }
  if (candidate < 0) {
    uint32_t key;
    if (problem.n <= kSmallest) {
      uint32_t* keys = problem.work.sample.room(problem.n);
      for (const Chunk& chunk : problem.chunks)
        for (int64_t i = 0; i < chunk.range.n; ++i) *keys++ = key_of(chunk.range, problem.score, i);
      key = Ranks(keys - problem.n, problem.n, double(kappa) / double(problem.n), problem.work)(double(kappa));
    } else {
      key = radix_select(problem, kappa);
    }
    for (int j = 0; j < kTopkBounds; ++j) bounds[j] = key + uint32_t(j % 2);
    counts = count_at_least(problem, bounds);
    candidate = 0;
  }
  const uint32_t key = *threshold = bounds[2 * candidate];
  const auto at = size_t(2 * candidate);
  int64_t ties = kappa; // to be dealt out from here on, once the survivors over the threshold are taken off
  for (const auto& chunk : counts) ties -= chunk[at + 1];
  std::vector<int64_t> share;
  for (const auto& chunk : counts) {
    share.push_back(std::min(ties, chunk[at] - chunk[at + 1]));
    ties -= share.back();
  }
  const auto kernel = LC_DISPATCH(topk_pass);
  parallel_for(int64_t(problem.chunks.size()), 1, [&](int64_t c, int64_t, int64_t) {
    Chunk& chunk = problem.chunks[size_t(c)];
    const PruneRange& range = chunk.range;
    int64_t left = share[size_t(c)];
    const bool all = left == counts[size_t(c)][at] - counts[size_t(c)][at + 1];
    chunk.counts = kernel(range, problem.score, 1, all ? key : key + 1, 0, problem.stream, nullptr);
    if (all) return;
    chunk.counts.kept += left;
    for (int64_t i = 0; i < range.n && left > 0; ++i)
      if (key_of(range, problem.score, i) == key) set_entry(range, uint32_t(i), true), --left;
  });
  return all_valid(problem);
}

// ---- indices --------------------------------------------------------------------------------------------------------

void write_indices(const Problem& problem, const std::vector<PruneRange>& tensors, int64_t* indices, int64_t* kept) {
  std::vector<int64_t> first;
  int64_t sum = 0;
  std::fill(kept, kept + tensors.size(), 0);
  for (const Chunk& chunk : problem.chunks) {
    first.push_back(sum);
    sum += chunk.counts.kept;
    kept[chunk.tensor] += chunk.counts.kept;
  }
  const auto kernel = LC_DISPATCH(topk_indices);
  parallel_for(int64_t(problem.chunks.size()), 1, [&](int64_t c, int64_t, int64_t) {
    const Chunk& chunk = problem.chunks[size_t(c)];
    kernel(chunk.range.bits, (chunk.range.n + 31) / 32, chunk.range.x - tensors[chunk.tensor].x,
           indices + first[size_t(c)], chunk.counts.kept);
  });
}

Workspace& workspace() {
  static thread_local Workspace work;
  return work;
}

// Room for the bits of tensors that have none: the survivors' indices are read off them.
std::vector<PruneRange> with_bits(std::vector<PruneRange> tensors, Workspace& work) {
  int64_t words = 0;
  for (const PruneRange& t : tensors) words += (t.n + 31) / 32;
  uint32_t* bits = work.bits.room(words);
  for (PruneRange& t : tensors) {
    if (!t.bits) t.bits = bits;
    bits += (t.n + 31) / 32;
  }
  return tensors;
}

} // namespace

bool topk_prune(const std::vector<PruneRange>& given, Score score, int64_t kappa, float* threshold, int64_t* indices,
                int64_t* kept) {
  Workspace& work = workspace();
  const std::vector<PruneRange> tensors = indices ? with_bits(given, work) : given;
  Problem problem = make_problem(tensors, score, work);
  uint32_t key = 0;
  bool done = false;
  if (kappa == 0) { // no finite score reaches the bound
    *threshold = std::numeric_limits<float>::infinity();
    if (threshold_prune(tensors, score, *threshold) < 0) return false;
  } else {
    if (problem.n > kSmallest) {
      const Bracket bracket = sample_bracket(problem, kappa);
      done = !bracket.crowded && prune_by_bracket(problem, bracket, kappa, &key);
      if (!done && !prune_exactly(problem, &bracket, kappa, &key)) return false;
    } else if (!prune_exactly(problem, nullptr, kappa, &key)) {
      return false;
    }
    std::memcpy(threshold, &key, sizeof key);
  }
  if (indices) write_indices(problem, tensors, indices, kept);
  return true;
}

int64_t threshold_prune(const std::vector<PruneRange>& tensors, Score score, float bound) {
  Problem problem = make_problem(tensors, score, workspace());
  const auto kernel = LC_DISPATCH(topk_pass);
  uint32_t key;
  std::memcpy(&key, &bound, sizeof key);
  parallel_for(int64_t(problem.chunks.size()), 1, [&](int64_t c, int64_t, int64_t) {
    Chunk& chunk = problem.chunks[size_t(c)];
    chunk.counts = kernel(chunk.range, score, 1, key + 1, 0, problem.stream, nullptr);
  });
  if (!all_valid(problem)) return -1;
  return std::accumulate(problem.chunks.begin(), problem.chunks.end(), int64_t(0),
                         [](int64_t sum, const Chunk& chunk) { return sum + chunk.counts.kept; });
}

} // namespace lc::cpu
