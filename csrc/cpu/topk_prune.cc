#include "../topk_prune.h"

#include "prune.h"

namespace lc::LC_ISA {
namespace {

constexpr uint32_t kSign = 1u << 31;

// Appends the positions of the set bits. The first two are written whether there or not: their number is what no branch
// predictor guesses. So `to` has room for two more.
template <class T> LC_INLINE void append_bits(uint32_t word, int64_t first, T* to, int64_t& size) {
  to += size;
  size += __builtin_popcount(word);
  to[0] = T(first + __builtin_ctz(word | 1u << 31));
  word &= word - 1;
  to[1] = T(first + __builtin_ctz(word | 1u << 31));
  for (to += 2, word &= word - 1; word; word &= word - 1) *to++ = T(first + __builtin_ctz(word));
}

template <Score kScore, bool kStream>
TopkCounts pass(const PruneRange& range, uint32_t low, uint32_t mid, uint32_t high, uint32_t* listed) {
  const float* x = range.x;
  const int64_t n = range.n;
  // Keys are below 2^31, so signed comparisons do. The bracket takes one: key - low, wrapped, is at most high - low.
  const VI below_mid = splat(int32_t(mid - 1)), beyond = splat(int32_t(high - low + 1 + kSign));
  const VU start = VU{} + (low - kSign);
  uint32_t none[2];
  if (!listed) listed = none;
  int64_t kept = 0, size = 0;
  VI bad{};
  int64_t i = 0;
  for (; i + kWord <= n; i += kWord) {
    VI keep[kVectors], bracket[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      const VI raw = load<VI>(x + i + v * kLanes);
      const VI key = keys_at<kScore>(range, i + v * kLanes, kLanes, raw, bad);
      keep[v] = key > below_mid;
      bracket[v] = (VI)((VU)key - start) < beyond;
      if (range.values) {
        if constexpr (kStream)
          stream(range.values + i + v * kLanes, raw & keep[v]);
        else
          store(range.values + i + v * kLanes, raw & keep[v]);
      }
    }
    if (range.bytes)
      for (int v = 0; v < kVectors; ++v) store(range.bytes + i + v * kLanes, low_bytes(keep[v] & 1));
    const uint32_t word = word_of(keep);
    kept += __builtin_popcount(word);
    if (range.bits) range.bits[i / kWord] = word;
    append_bits(word_of(bracket), i, listed, size); // also empty words: a branch on that is guessed wrong too often
  }
  uint32_t word = 0;
  for (; i < n; i += kLanes) {
    const int64_t left = n - i;
    const VI valid = first_lanes(left), raw = left >= kLanes ? load<VI>(x + i) : load<VI>(x + i, left);
    const VI key = keys_at<kScore>(range, i, left, raw, bad), keep = (key > below_mid) & valid;
    const int64_t lanes = left < kLanes ? left : kLanes;
    if (range.values) store(range.values + i, raw & keep, lanes);
    if (range.bytes) store(range.bytes + i, low_bytes(keep & 1), lanes);
    word |= lane_bits(keep) << (i % kWord);
    const uint32_t inside = lane_bits(((VI)((VU)key - start) < beyond) & valid);
    if (inside) append_bits(inside, i, listed, size);
  }
  kept += __builtin_popcount(word);
  if (range.bits && n % kWord) range.bits[n / kWord] = word;
  if constexpr (kStream) stream_fence();
  TopkCounts counts;
  counts.kept = kept;
  counts.listed = size;
  counts.valid = all_valid(bad);
  return counts;
}

template <Score kScore> void count(const PruneRange& range, const uint32_t* bounds, int64_t* counts) {
  VI below[kTopkBounds], reached[kTopkBounds] = {}, ignored{};
  for (int j = 0; j < kTopkBounds; ++j) below[j] = splat(int32_t(bounds[j] - 1));
  int64_t i = 0;
  for (; i + kLanes <= range.n; i += kLanes) {
    const VI key = keys_at<kScore>(range, i, kLanes, load<VI>(range.x + i), ignored);
    for (int j = 0; j < kTopkBounds; ++j) reached[j] -= key > below[j];
  }
  if (i < range.n) {
    const VI key = keys_at<kScore>(range, i, range.n - i, load<VI>(range.x + i, range.n - i), ignored);
    for (int j = 0; j < kTopkBounds; ++j) reached[j] -= (key > below[j]) & first_lanes(range.n - i);
  }
  for (int j = 0; j < kTopkBounds; ++j) {
    counts[j] = 0;
    for (int l = 0; l < kLanes; ++l) counts[j] += reached[j][l];
  }
}

template <Score kScore> void histogram_of(const PruneRange& range, int prefix_shift, uint32_t prefix, int shift,
                                          uint32_t bins, uint32_t* histogram) {
  VI ignored{};
  for (int64_t i = 0; i < range.n; i += kLanes) {
    const int64_t left = range.n - i < kLanes ? range.n - i : kLanes;
    const VI raw = left == kLanes ? load<VI>(range.x + i) : load<VI>(range.x + i, left);
    const VI key = keys_at<kScore>(range, i, left, raw, ignored);
    for (int l = 0; l < left; ++l)
      if (uint32_t(key[l]) >> prefix_shift == prefix) ++histogram[(uint32_t(key[l]) >> shift) & (bins - 1)];
  }
}

} // namespace

TopkCounts topk_pass(const PruneRange& range, Score score, uint32_t low, uint32_t mid, uint32_t high, bool stream,
                     uint32_t* listed) {
  const auto run = [&](auto f) { return f(range, low, mid, high, listed); };
  switch (score) {
  case Score::weighted:
    return run(stream ? pass<Score::weighted, true> : pass<Score::weighted, false>);
  case Score::given:
    return run(stream ? pass<Score::given, true> : pass<Score::given, false>);
  default:
    return run(stream ? pass<Score::magnitude, true> : pass<Score::magnitude, false>);
  }
}

void topk_count(const PruneRange& range, Score score, const uint32_t* bounds, int64_t* counts) {
  switch (score) {
  case Score::weighted:
    return count<Score::weighted>(range, bounds, counts);
  case Score::given:
    return count<Score::given>(range, bounds, counts);
  default:
    return count<Score::magnitude>(range, bounds, counts);
  }
}

void topk_histogram(const PruneRange& range, Score score, int prefix_shift, uint32_t prefix, int shift, uint32_t bins,
                    uint32_t* histogram) {
  const auto run = [&](auto f) { f(range, prefix_shift, prefix, shift, bins, histogram); };
  switch (score) {
  case Score::weighted:
    return run(histogram_of<Score::weighted>);
  case Score::given:
    return run(histogram_of<Score::given>);
  default:
    return run(histogram_of<Score::magnitude>);
  }
}

void topk_indices(const uint32_t* bits, int64_t words, int64_t begin, int64_t* indices, int64_t kept) {
  int64_t size = 0, w = 0;
  for (; w < words && size + kWord + 2 <= kept; ++w) append_bits(bits[w], begin + kWord * w, indices, size);
  for (; w < words; ++w)
    for (uint32_t word = bits[w]; word; word &= word - 1) indices[size++] = begin + kWord * w + __builtin_ctz(word);
}

} // namespace lc::LC_ISA
