// An entry survives if fewer than n of its group beat it: larger scores, and equal ones at a lower index. Counting
// needs no branch and no sort, and works on as many groups at a time as a vector has lanes.
#include "../nm_prune.h"

#include "prune.h"

namespace lc::LC_ISA {
namespace {

constexpr int kMostM = 16;

// ---- groups that are columns ----------------------------------------------------------------------------------------

// Survivors among m keys, lane by lane; row j of both is at j * stride.
LC_INLINE void survivors(const VI* key, int n, int m, int stride, VI* keep) {
  for (int i = 0; i < m; ++i) {
    const VI own = key[i * stride];
    VI beaten{};
    for (int j = 0; j < i; ++j) beaten += key[j * stride] >= own;
    for (int j = i + 1; j < m; ++j) beaten += key[j * stride] > own;
    keep[i * stride] = beaten > splat(int32_t(-n)); // true is -1
  }
}

// Mask bits of up to 32 entries from bit p on; the bits were zero.
LC_INLINE void or_bits(uint32_t* bits, int64_t p, uint32_t word) {
  bits[p / kWord] |= word << (p % kWord);
  if (p % kWord && word >> (kWord - p % kWord)) bits[p / kWord + 1] |= word >> (kWord - p % kWord);
}

template <Score kScore> bool columns(const PruneRange& range, int64_t inner, int n, int m, bool streamed) {
  VI bad{}, key[kMostM], raw[kMostM], keep[kMostM];
  if (range.bits)
    for (int64_t w = 0; w < (range.n + kWord - 1) / kWord; ++w) range.bits[w] = 0;
  for (int64_t block = 0; block < range.n; block += m * inner)
    for (int64_t c = 0; c < inner; c += kLanes) {
      // Whole vectors also where the row ends sooner: its tail is the next row. A store may do that too where it is the
      // last of its row and the next row is written later. The tail of a range takes partial ones, which are slow.
      const int64_t left = inner - c, last = block + (m - 1) * inner + c;
      const bool whole_loads = last + kLanes <= range.n, whole_stores = left >= kLanes || (whole_loads && c == 0);
      const VI valid = first_lanes(left);
      for (int j = 0; j < m; ++j) {
        const int64_t at = block + j * inner + c;
        raw[j] = whole_loads ? load<VI>(range.x + at) : load<VI>(range.x + at, left < kLanes ? left : kLanes);
        key[j] = keys_at<kScore>(range, at, whole_loads ? kLanes : left, raw[j], bad);
      }
      survivors(key, n, m, 1, keep);
      for (int j = 0; j < m; ++j) {
        const int64_t at = block + j * inner + c;
        const VI value = raw[j] & keep[j];
        if (range.values) {
          if (streamed)
            stream(range.values + at, value);
          else if (whole_stores)
            store(range.values + at, value);
          else
            store(range.values + at, value, left);
        }
        if (range.bytes) {
          if (whole_stores)
            store(range.bytes + at, low_bytes(keep[j] & 1));
          else
            store(range.bytes + at, low_bytes(keep[j] & 1), left);
        }
        if (range.bits) or_bits(range.bits, at, lane_bits(keep[j] & valid));
      }
    }
  if (streamed) stream_fence();
  return all_valid(bad);
}

// ---- groups of consecutive entries ----------------------------------------------------------------------------------

// Survivors where groups of M lie side by side in a vector: the group turns against itself.
template <int M> LC_INLINE VI survivors_in(VI key, int n) {
  VI beaten{};
#pragma GCC unroll 16
  for (int turn = 1; turn < M; ++turn) {
    VI from;
    VU lower; // unsigned: the key of a NaN would overflow
    for (int l = 0; l < kLanes; ++l) {
      from[l] = l / M * M + (l + turn) % M;
      lower[l] = from[l] < l; // an equal one there beats this lane
    }
    beaten += (VI)((VU)__builtin_shuffle(key, from) + lower) > key;
  }
  return beaten > splat(int32_t(-n));
}

// For any m: the 32 groups of m words are transposed into columns and back.
LC_INLINE void survivors_across(const VI* key, int n, int m, VI* keep) {
  int32_t rows[kMostM * kWord], turned[kMostM * kWord];
  VI columns[kMostM * kVectors], kept[kMostM * kVectors];
  __builtin_memcpy(rows, key, sizeof(int32_t) * kWord * m);
  for (int g = 0; g < kWord; ++g)
    for (int j = 0; j < m; ++j) turned[j * kWord + g] = rows[g * m + j];
  __builtin_memcpy(columns, turned, sizeof(int32_t) * kWord * m);
  for (int v = 0; v < kVectors; ++v) survivors(columns + v, n, m, kVectors, kept + v);
  __builtin_memcpy(turned, kept, sizeof(int32_t) * kWord * m);
  for (int g = 0; g < kWord; ++g)
    for (int j = 0; j < m; ++j) rows[g * m + j] = turned[j * kWord + g];
  __builtin_memcpy(keep, rows, sizeof(int32_t) * kWord * m);
}

template <bool kStream> LC_INLINE void write_word(const PruneRange& range, int64_t at, const VI (&keep)[kVectors]) {
  if (range.values)
    for (int v = 0; v < kVectors; ++v) {
      const int64_t i = at + v * kLanes;
      const VI value = load<VI>(range.x + i) & keep[v];
      if constexpr (kStream)
        stream(range.values + i, value);
      else
        store(range.values + i, value);
    }
  if (range.bytes)
    for (int v = 0; v < kVectors; ++v) store(range.bytes + at + v * kLanes, low_bytes(keep[v] & 1));
  if (range.bits) range.bits[at / kWord] = word_of(keep);
}

// M: the size of the groups if a vector holds whole ones, else 0. Works on blocks of as many words as give whole
// groups.
template <Score kScore, bool kStream, int M> bool rows(const PruneRange& range, int n, int m) {
  const int words = M ? 1 : m;
  VI bad{};
  int64_t at = 0;
  VI key[kMostM * kVectors], keep[kMostM * kVectors];
  const auto compute = [&](const PruneRange& r, int64_t from) {
    for (int v = 0; v < words * kVectors; ++v)
      key[v] = keys_at<kScore>(r, from + v * kLanes, kLanes, load<VI>(r.x + from + v * kLanes), bad);
    if constexpr (M > 0)
      for (int v = 0; v < kVectors; ++v) keep[v] = survivors_in<M>(key[v], n);
    else
      survivors_across(key, n, m, keep);
  };
  for (; at + words * kWord <= range.n; at += words * kWord) {
    compute(range, at);
    for (int w = 0; w < words; ++w) {
      VI word[kVectors];
      for (int v = 0; v < kVectors; ++v) word[v] = keep[w * kVectors + v];
      write_word<kStream>(range, at + w * kWord, word);
    }
  }
  if (at < range.n) { // the last groups, in copies filled with zeros
    const int64_t left = range.n - at;
    float x[kMostM * kWord] = {}, score[kMostM * kWord] = {}, values[kMostM * kWord];
    uint8_t bytes[kMostM * kWord];
    uint32_t bits[kMostM];
    __builtin_memcpy(x, range.x + at, sizeof(float) * left);
    if (range.score) __builtin_memcpy(score, range.score + at, sizeof(float) * left);
    compute({x, score, 0, nullptr, nullptr, nullptr}, 0);
    for (int64_t i = left; i < words * kWord; ++i) ((int32_t*)keep)[i] = 0;
    for (int w = 0; w < words; ++w) {
      VI word[kVectors];
      for (int v = 0; v < kVectors; ++v) word[v] = keep[w * kVectors + v];
      write_word<false>({x, score, 0, values, bytes, bits}, w * kWord, word);
    }
    if (range.values) __builtin_memcpy(range.values + at, values, sizeof(float) * left);
    if (range.bytes) __builtin_memcpy(range.bytes + at, bytes, left);
    if (range.bits) __builtin_memcpy(range.bits + at / kWord, bits, sizeof(uint32_t) * ((left + kWord - 1) / kWord));
  }
  if constexpr (kStream) stream_fence();
  return all_valid(bad);
}

template <Score kScore, bool kStream> bool rows(const PruneRange& range, int n, int m) {
  if constexpr (kLanes >= 4) {
    if (m == 2) return rows<kScore, kStream, 2>(range, n, m);
    if (m == 4) return rows<kScore, kStream, 4>(range, n, m);
  }
  if constexpr (kLanes >= 8)
    if (m == 8) return rows<kScore, kStream, 8>(range, n, m);
  if constexpr (kLanes >= 16)
    if (m == 16) return rows<kScore, kStream, 16>(range, n, m);
  return rows<kScore, kStream, 0>(range, n, m);
}

} // namespace

bool nm_columns(const PruneRange& range, Score score, int64_t inner, int n, int m, bool stream) {
  switch (score) {
  case Score::weighted:
    return columns<Score::weighted>(range, inner, n, m, stream);
  case Score::given:
    return columns<Score::given>(range, inner, n, m, stream);
  default:
    return columns<Score::magnitude>(range, inner, n, m, stream);
  }
}

bool nm_rows(const PruneRange& range, Score score, int n, int m, bool stream) {
  const auto run = [&](auto f) { return f(range, n, m); };
  switch (score) {
  case Score::weighted:
    return run(stream ? rows<Score::weighted, true> : rows<Score::weighted, false>);
  case Score::given:
    return run(stream ? rows<Score::given, true> : rows<Score::given, false>);
  default:
    return run(stream ? rows<Score::magnitude, true> : rows<Score::magnitude, false>);
  }
}

} // namespace lc::LC_ISA
