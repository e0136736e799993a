// The data of topk_prune under way, and the selection of thresholds among its keys. Included by topk_*.cc only.
#pragma once
#include <array>
#include <cmath>
#include <cstring>
#include <memory>

#include "topk_prune.h"

namespace lc::cpu::topk {

constexpr int64_t kCrowded = 32; // a list of more than n / kCrowded entries is given up
constexpr int64_t kLargestSample = 1 << 18;

inline float score_of(const PruneRange& range, Score score, int64_t i) {
  const float magnitude = std::fabs(range.x[i]);
  if (score == Score::magnitude) return magnitude;
  return score == Score::weighted ? range.score[i] * magnitude * magnitude : range.score[i];
}

inline uint32_t key_of(const PruneRange& range, Score score, int64_t i) {
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

/// The rank-th largest of n keys, 1 <= rank <= n; reorders them.
uint32_t select(uint32_t* keys, int64_t n, int64_t rank);

/// The same with memory to work in: quicker for many keys.
uint32_t select(uint32_t* keys, int64_t n, int64_t rank, Workspace& work);

struct Bracket {
  uint32_t low, mid, high;
  bool crowded; // too much of the data is in it
};

/// The wanted rank lies in the bracket with 5 standard deviations of a simple random sample to spare on either side.
Bracket sample_bracket(const Problem& problem, int64_t kappa);

/// Values that the threshold is likely to be if many entries share them: mid, and its neighbours in the sample.
std::array<uint32_t, 3> candidates(const Problem& problem, uint32_t mid);

/// The kappa-th largest key of all the data.
uint32_t radix_select(const Problem& problem, int64_t kappa);

} // namespace lc::cpu::topk
