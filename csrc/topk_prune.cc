// The common path reads the data once. A sample of the keys gives a bracket [low, high] that holds the threshold almost
// surely, and an estimate `mid`. One pass writes the result as if the threshold were mid and lists the few entries in
// the bracket; the exact threshold is selected among those; then only listed entries between mid and the true
// threshold are repaired. If too much falls into the bracket (heavy ties), a counting pass over a few values of the
// sample tells whether one of them is the threshold; if not, or if the bracket missed, a three-level radix histogram
// finds it. Then a pass writes the result, each chunk with its share of the ties.
#include "topk_prune.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <numeric>

#include "parallel.h"
#include "topk_select.h"

namespace lc::cpu {
namespace {

using namespace topk;

constexpr int64_t kChunk = 1 << 16;
constexpr int64_t kSmallest = 1 << 14; // below this, a sample is not worth its noise

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
      key = select(keys - problem.n, problem.n, kappa, problem.work);
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
