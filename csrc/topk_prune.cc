// The common path reads the data once. A sample of the magnitudes gives a bracket [low, high] that holds the threshold
// almost surely, and an estimate `mid`. One pass writes the result as if the threshold were mid and lists the few
// entries in the bracket; the exact threshold is selected among those; then only listed entries between mid and the
// true threshold are repaired. If the bracket missed or too much fell into it (heavy ties, or too little data for a
// sample), the threshold is found exactly by a three-level radix histogram first, and ties are dealt out after.
#include "topk_prune.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

#include "parallel.h"

namespace lc::cpu {
namespace {

constexpr int64_t kChunk = 1 << 16;
constexpr int64_t kSmallest = 1 << 14; // below this, a sample is not worth its noise
constexpr int64_t kLine = 16;          // floats sampled together: one cache line
constexpr uint32_t kMagnitude = 0x7fffffff;

uint32_t key_of(const float* x) {
  uint32_t bits;
  std::memcpy(&bits, x, sizeof bits);
  return bits & kMagnitude;
}

struct Chunk {
  const float* x;
  int64_t n;
  float* values;
  uint8_t* mask;
  int64_t list; // its entries are at [list, list + capacity) of the lists
  TopkCounts counts{};
  int64_t capacity() const { return n / 16 + 1; } // bounds the extra memory at n/2 bytes
};

struct Bracket {
  uint32_t low, mid, high;
};

// The wanted rank lies in the bracket with 5 standard deviations of a simple random sample to spare on either side.
// Lines at a stride, each at a pseudo-random offset within it, stand in for one.
Bracket sample_bracket(const std::vector<Chunk>& chunks, int64_t n, int64_t kappa) {
  const int64_t lines = std::clamp<int64_t>(n / 64, 4096, 65536) / kLine;
  std::vector<uint32_t> keys;
  keys.reserve(size_t(lines * kLine));
  uint32_t random = 12345;
  for (const Chunk& chunk : chunks) {
    const int64_t share = std::max<int64_t>(1, lines * chunk.n / n);
    const int64_t stride = chunk.n / share;
    for (int64_t line = 0; line < share; ++line) {
      random = random * 1664525u + 1013904223u;
      const int64_t room = std::max<int64_t>(1, stride - kLine + 1);
      const int64_t at = line * stride + int64_t((uint64_t(random) * uint64_t(room)) >> 32);
      for (int64_t i = at; i < std::min(at + kLine, chunk.n); ++i) keys.push_back(key_of(chunk.x + i));
    }
  }
  const double m = double(keys.size()), f = double(kappa) / double(n);
  const double spread = 5 * std::sqrt(m * f * (1 - f)) + 2;
  const auto at_rank = [&](double rank) { // the rank-th largest, 1-based
    const int64_t r = std::clamp<int64_t>(int64_t(rank), 1, int64_t(keys.size())) - 1;
    std::nth_element(keys.begin(), keys.begin() + r, keys.end(), std::greater<>());
    return keys[size_t(r)];
  };
  const uint32_t mid = at_rank(m * f);
  // Off either end of the sample, nothing bounds the rank but the data itself.
  const uint32_t low = m * f + spread >= m ? 0 : at_rank(m * f + spread);
  const uint32_t high = m * f - spread <= 1 ? kMagnitude : at_rank(m * f - spread);
  return {low, mid, high};
}

// The kappa-th largest key of all the data, and how many entries equal to it survive. 11 + 10 + 10 bits.
std::pair<uint32_t, int64_t> radix_select(const std::vector<Chunk>& chunks, int64_t kappa) {
  const auto kernel = LC_DISPATCH(topk_histogram);
  constexpr int kShift[] = {20, 10, 0}, kBits[] = {11, 10, 10};
  uint32_t prefix = 0;
  int64_t wanted = kappa;
  for (int level = 0; level < 3; ++level) {
    const uint32_t bins = 1u << kBits[level];
    // One histogram for a group of chunks: the sums are integers, so any grouping gives the same result.
    const int64_t groups = std::min<int64_t>(int64_t(chunks.size()), omp_get_max_threads());
    std::vector<std::vector<uint32_t>> histograms(static_cast<size_t>(groups), std::vector<uint32_t>(bins));
    parallel_for(groups, 1, [&](int64_t group, int64_t, int64_t) {
      for (size_t c = size_t(group); c < chunks.size(); c += size_t(groups))
        kernel(chunks[c].x, chunks[c].n, kShift[level] + kBits[level], prefix, kShift[level], bins,
               histograms[size_t(group)].data());
    });
    for (uint32_t bin = bins; bin-- > 0;) {
      int64_t count = 0;
      for (const auto& histogram : histograms) count += histogram[bin];
      if (count >= wanted) {
        prefix = (prefix << kBits[level]) | bin;
        break;
      }
      wanted -= count;
    }
  }
  return {prefix, wanted};
}

struct Lists {
  explicit Lists(int64_t size)
      : bits(std::make_unique_for_overwrite<uint32_t[]>(size_t(size))),
        at(std::make_unique_for_overwrite<uint32_t[]>(size_t(size))) {}
  std::unique_ptr<uint32_t[]> bits, at;
};

void run_pass(std::vector<Chunk>& chunks, Bracket bracket, const Lists* lists) {
  const auto kernel = LC_DISPATCH(topk_pass);
  parallel_for(int64_t(chunks.size()), 1, [&](int64_t c, int64_t, int64_t) {
    Chunk& chunk = chunks[size_t(c)];
    chunk.counts = kernel(chunk.x, chunk.n, bracket.low, bracket.mid, bracket.high, chunk.values, chunk.mask,
                          lists ? lists->bits.get() + chunk.list : nullptr,
                          lists ? lists->at.get() + chunk.list : nullptr, lists ? chunk.capacity() : 0);
  });
}

bool all_finite(const std::vector<Chunk>& chunks) {
  return std::all_of(chunks.begin(), chunks.end(), [](const Chunk& c) { return c.counts.finite; });
}

void set_entry(Chunk& chunk, uint32_t at, bool keep, uint32_t bits) {
  if (!keep) bits = 0;
  if (chunk.values) std::memcpy(chunk.values + at, &bits, sizeof bits);
  if (chunk.mask) chunk.mask[at] = keep;
}

// The sampled path after its pass. Returns false, having changed nothing, if the bracket was no good.
bool repair(std::vector<Chunk>& chunks, uint32_t mid, const Lists& lists, int64_t kappa, uint32_t* threshold) {
  int64_t above = 0; // entries over the bracket: certain survivors
  std::vector<uint32_t> keys;
  for (const Chunk& chunk : chunks) {
    if (chunk.counts.listed > chunk.capacity()) return false;
    above += chunk.counts.kept;
    for (int64_t i = chunk.list; i < chunk.list + chunk.counts.listed; ++i) {
      keys.push_back(lists.bits[size_t(i)] & kMagnitude);
      above -= keys.back() >= mid;
    }
  }
  const int64_t wanted = kappa - above;
  if (wanted < 1 || wanted > int64_t(keys.size())) return false;
  std::nth_element(keys.begin(), keys.begin() + (wanted - 1), keys.end(), std::greater<>());
  *threshold = keys[size_t(wanted - 1)];
  int64_t ties = wanted - std::count_if(keys.begin(), keys.end(), [&](uint32_t key) { return key > *threshold; });
  for (Chunk& chunk : chunks)
    for (int64_t i = chunk.list; i < chunk.list + chunk.counts.listed; ++i) {
      const uint32_t bits = lists.bits[size_t(i)], key = bits & kMagnitude;
      const bool keep = key > *threshold || (key == *threshold && ties-- > 0);
      if (keep != (key >= mid)) set_entry(chunk, lists.at[size_t(i)], keep, bits);
    }
  return true;
}

// The path of heavy ties and of small data: exact threshold first, then one pass, then the ties in index order.
bool prune_by_radix(std::vector<Chunk>& chunks, int64_t kappa, uint32_t* threshold) {
  const auto [key, survivors] = radix_select(chunks, kappa);
  *threshold = key;
  run_pass(chunks, {key, key + 1, key}, nullptr);
  if (!all_finite(chunks)) return false;
  int64_t ties = survivors;
  for (Chunk& chunk : chunks)
    for (int64_t i = 0; i < chunk.n && ties > 0 && chunk.counts.listed > 0; ++i)
      if (key_of(chunk.x + i) == key) {
        uint32_t bits;
        std::memcpy(&bits, chunk.x + i, sizeof bits);
        set_entry(chunk, uint32_t(i), true, bits);
        --chunk.counts.listed;
        --ties;
      }
  return true;
}

} // namespace

bool topk_prune(const std::vector<const float*>& x, const std::vector<int64_t>& n, int64_t kappa,
                const std::vector<float*>& values, const std::vector<uint8_t*>& mask, float* threshold) {
  std::vector<Chunk> chunks;
  int64_t total = 0, list_size = 0;
  for (size_t t = 0; t < x.size(); ++t) {
    total += n[t];
    for (int64_t at = 0; at < n[t]; at += kChunk) {
      chunks.push_back({x[t] + at, std::min(kChunk, n[t] - at), values[t] ? values[t] + at : nullptr,
                        mask[t] ? mask[t] + at : nullptr, list_size});
      list_size += chunks.back().capacity();
    }
  }
  if (kappa == 0) { // no finite key reaches kMagnitude
    run_pass(chunks, {kMagnitude, kMagnitude, kMagnitude}, nullptr);
    *threshold = std::numeric_limits<float>::infinity();
    return all_finite(chunks);
  }
  uint32_t key = 0;
  bool done = false;
  if (total >= kSmallest) {
    const Bracket bracket = sample_bracket(chunks, total, kappa);
    const Lists lists(list_size);
    run_pass(chunks, bracket, &lists);
    if (!all_finite(chunks)) return false;
    done = repair(chunks, bracket.mid, lists, kappa, &key);
  }
  if (!done && !prune_by_radix(chunks, kappa, &key)) return false;
  std::memcpy(threshold, &key, sizeof key);
  return true;
}

} // namespace lc::cpu
