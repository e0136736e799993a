// The label pass. Part of kmeans1d.cc: included by nothing else.
#pragma once
#include "../kmeans1d.h"

#include "simd8.h"

#define LC_INLINE_MEMBER __attribute__((always_inline)) inline

namespace lc::LC_ISA {
namespace {

constexpr int kKeyBlock = 64; // keys are computed 64 at a time with vectors, then used one by one
static_assert(kKeyBlock % kLanes == 0);

// Fetches n values 2 KB ahead of p, which may be past the end: a quarter less time at 1e7 values.
template <int n> LC_INLINE void fetch_ahead(const float* p) {
  for (int i = 0; i < n; i += 16) __builtin_prefetch((const void*)(uintptr_t(p + i) + 2048));
}

// The keys of n values, shifted and biased. Returns a mask of those that are off the grid.
template <int n> LC_INLINE VI block_keys(const float* x, Kmeans1dGrid grid, int32_t* keys, int shift, uint32_t bias) {
  const VF center = splat(grid.center), base = splat(grid.base);
  const VI base_bits = bits(base);
  VI off{};
  fetch_ahead<n>(x);
  for (int i = 0; i < n; i += kLanes) {
    const VF t = load<VF>(x + i) - center;
    const VI key = bits(abs(t) + base) - base_bits;
    off |= (key >> grid.shift) >= splat(grid.half);
    store(keys + i, (VU)((key ^ VI(t < splat(0.0f))) >> shift) + bias); // ~key below the center
  }
  return off;
}

// How the squares of the distances are summed: in float, eight at a time, and then in double; or in double from the
// start, each times its weight if there are any. The order of the additions is the same on every instruction set.
LC_INLINE V4D low_half(V8F v) { return widen4(__builtin_shufflevector(v, v, 0, 1, 2, 3)); }
LC_INLINE V4D high_half(V8F v) { return widen4(__builtin_shufflevector(v, v, 4, 5, 6, 7)); }

struct Rough {
  V4D low{}, high{};
  V8F square[4];
  LC_INLINE_MEMBER void add(int v, V8F x, V8F nearest, const float*) {
    const V8F d = x - nearest;
    square[v] = d * d;
  }
  LC_INLINE_MEMBER void end_step() {
    const V8F sum = (square[0] + square[1]) + (square[2] + square[3]);
    low += low_half(sum), high += high_half(sum);
  }
};

template <bool kWeighted> struct Exact {
  V4D low{}, high{};
  LC_INLINE_MEMBER void add(int, V8F x, V8F nearest, const float* h) {
    const V4D d = low_half(x) - low_half(nearest), e = high_half(x) - high_half(nearest);
    if constexpr (kWeighted) {
      const V8F weight = load<V8F>(h);
      low += low_half(weight) * d * d, high += high_half(weight) * e * e;
    } else {
      low += d * d, high += e * e;
    }
  }
  LC_INLINE_MEMBER void end_step() {}
};

constexpr int kStep = 32;

// For each kStep values label(values, code, nearest). Returns the distortion.
template <class Sum, class F>
LC_INLINE double label_all(const float* x, const float* h, int64_t n, uint8_t* codes, F label) {
  Sum sum;
  V8I code[4];
  V8F nearest[4];
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep) {
    label(x + i, n - i, code, nearest);
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) sum.add(v, load<V8F>(x + i + 8 * v), nearest[v], h + i + 8 * v);
    sum.end_step();
    store_bytes8(codes + i, code[0], code[1], code[2], code[3]);
  }
  if (i < n) { // filled up with copies of the first, which are then taken to be on their codeword
    float tail[kStep], weights[kStep] = {};
    uint8_t last[kStep];
    for (int j = 0; j < kStep; ++j) tail[j] = x[i + j < n ? i + j : i];
    for (int j = 0; h && i + j < n; ++j) weights[j] = h[i + j];
    label(tail, kStep, code, nearest);
    for (int v = 0; v < 4; ++v) {
      const V8F value = load<V8F>(tail + 8 * v);
      for (int l = 0; l < 8; ++l) nearest[v][l] = i + 8 * v + l < n ? nearest[v][l] : value[l];
      sum.add(v, value, nearest[v], weights + 8 * v);
    }
    sum.end_step();
    store_bytes8(last, code[0], code[1], code[2], code[3]);
    __builtin_memcpy(codes + i, last, n - i);
  }
  const V4D t = sum.low + sum.high;
  return (t[0] + t[1]) + (t[2] + t[3]);
}

// Counts the midpoints below x: up to four codewords.
template <int kMids> struct Counting {
  V8F mids[kMids], table{};
  explicit Counting(const Kmeans1dLabels& labels) {
    for (int m = 0; m < kMids; ++m) mids[m] = splat8(labels.mids[m]);
    for (int c = 0; c <= kMids; ++c) table[c] = labels.codebook[c];
  }
  LC_INLINE_MEMBER void operator()(const float* x, int64_t, V8I (&code)[4], V8F (&nearest)[4]) const {
    fetch_ahead<kStep>(x);
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      V8I below{};
#pragma GCC unroll 4
      for (int m = 0; m < kMids; ++m) below -= load<V8F>(x + 8 * v) > mids[m];
      code[v] = below;
    }
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) nearest[v] = lookup8(table, (V8U)code[v]);
  }
};

// A search tree of four levels in registers: half the time of 15 comparisons.
struct Tree {
  V8F root, second_low, second_high, third, fourth, low, high;
  explicit Tree(const Kmeans1dLabels& labels) {
    const float* m = labels.mids;
    root = splat8(m[7]), second_low = splat8(m[3]), second_high = splat8(m[11]);
    third = V8F{m[1], m[5], m[9], m[13]}, fourth = V8F{m[0], m[2], m[4], m[6], m[8], m[10], m[12], m[14]};
    low = load<V8F>(labels.codebook), high = load<V8F>(labels.codebook + 8);
  }
  // Level by level for all four, since one search is a chain of dependent operations.
  LC_INLINE_MEMBER void operator()(const float* x, int64_t, V8I (&code)[4], V8F (&nearest)[4]) const {
    fetch_ahead<kStep>(x);
    V8I upper[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) upper[v] = load<V8F>(x + 8 * v) > root;
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v)
      code[v] = -(upper[v] + upper[v]) - (load<V8F>(x + 8 * v) > select8((V8U)upper[v], second_high, second_low));
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) code[v] = code[v] + code[v] - (load<V8F>(x + 8 * v) > lookup8(third, (V8U)code[v]));
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) code[v] = code[v] + code[v] - (load<V8F>(x + 8 * v) > lookup8(fourth, (V8U)code[v]));
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v)
      nearest[v] = select8((V8U)upper[v], lookup8(high, (V8U)code[v]), lookup8(low, (V8U)code[v]));
  }
};

// The bin of x tells the two codewords it may belong to, and one comparison which.
struct Table {
  Kmeans1dGrid grid;
  const Kmeans1dLabels::Entry* middle;
  static constexpr int kAhead = 256;
  const float* next = nullptr; // the value whose key is keys[at]
  int at = 0, count = 0;
  alignas(64) int32_t keys[kAhead];
  explicit Table(const Kmeans1dLabels& labels) : grid(labels.grid), middle(labels.entries + labels.grid.half) {}
  LC_INLINE_MEMBER void operator()(const float* x, int64_t left, V8I (&code)[4], V8F (&nearest)[4]) {
    if (x != next) { // the keys of many values before the first is used
      next = x, at = 0;
      count = left < kAhead ? int(left) : kAhead;
      for (int i = 0; i + kStep <= count; i += kStep) block_keys<kStep>(x + i, grid, keys + i, grid.shift, 0);
    }
    for (int v = 0; v < 4; ++v) nearest[v] = one(keys + at + 8 * v, load<V8F>(x + 8 * v), code[v]);
    at += kStep;
    next = at + kStep <= count ? next + kStep : nullptr;
  }
  LC_INLINE_MEMBER V8F one(const int32_t* key, V8F value, V8I& code) const {
    const auto pair = [&](int l) {
      const V4F low = load<V4F>(&middle[key[l]].mid), high = load<V4F>(&middle[key[l + 4]].mid);
      return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7);
    };
    const V8F a = pair(0), b = pair(1), c = pair(2), d = pair(3); // become columns
    const V8F ab_low = __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13);
    const V8F ab_high = __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
    const V8F cd_low = __builtin_shufflevector(c, d, 0, 8, 1, 9, 4, 12, 5, 13);
    const V8F cd_high = __builtin_shufflevector(c, d, 2, 10, 3, 11, 6, 14, 7, 15);
    const V8F mid = __builtin_shufflevector(ab_low, cd_low, 0, 1, 8, 9, 4, 5, 12, 13);
    const V8F below = __builtin_shufflevector(ab_low, cd_low, 2, 3, 10, 11, 6, 7, 14, 15);
    const V8F above = __builtin_shufflevector(ab_high, cd_high, 0, 1, 8, 9, 4, 5, 12, 13);
    const V8U both = (V8U)__builtin_shufflevector(ab_high, cd_high, 2, 3, 10, 11, 6, 7, 14, 15);
    const V8I over = value > mid;
    code = (V8I)(over ? both >> 16 : both & 0xffff);
    return select8((V8U)over, above, below);
  }
};

// Eight steps of a binary search, four searches abreast.
struct Search {
  const Kmeans1dLabels& labels;
  explicit Search(const Kmeans1dLabels& l) : labels(l) {}
  LC_INLINE_MEMBER void operator()(const float* x, int64_t, V8I (&code)[4], V8F (&nearest)[4]) const {
    for (int i = 0; i < kStep; i += 4) {
      int at[4] = {};
      for (int step = 128; step; step >>= 1)
        for (int u = 0; u < 4; ++u) at[u] += step * (labels.mids[at[u] + step - 1] < x[i + u]);
      for (int u = 0; u < 4; ++u) code[i / 8][i % 8 + u] = at[u], nearest[i / 8][i % 8 + u] = labels.codebook[at[u]];
    }
  }
};

template <class F>
double label_with(const float* x, const float* h, int64_t n, const Kmeans1dLabels& labels, uint8_t* codes) {
  const F label(labels);
  if (h) return label_all<Exact<true>>(x, h, n, codes, label);
  if (labels.exact) return label_all<Exact<false>>(x, h, n, codes, label);
  return label_all<Rough>(x, h, n, codes, label);
}

} // namespace

double kmeans1d_label(const float* x, const float* h, int64_t n, const Kmeans1dLabels& labels, uint8_t* codes) {
  if (labels.k <= 2) return label_with<Counting<1>>(x, h, n, labels, codes);
  if (labels.k <= 4) return label_with<Counting<3>>(x, h, n, labels, codes);
  if (labels.k <= 16) return label_with<Tree>(x, h, n, labels, codes);
  if (labels.entries) return label_with<Table>(x, h, n, labels, codes);
  return label_with<Search>(x, h, n, labels, codes);
}

void kmeans1d_pack(const uint8_t* codes, int64_t n, int bits, int32_t* words) {
  uint8_t* out = (uint8_t*)words;
  const int64_t bytes = (n * bits + 31) / 32 * 4;
  int64_t i = 0, at = 0;
  const auto eight = [&](const uint8_t* from) {
    uint64_t v;
    __builtin_memcpy(&v, from, 8);
    return gather_bits(v, 0x0101010101010101u * ((1u << bits) - 1), bits);
  };
  for (; at + 8 <= bytes && i + 8 <= n; i += 8, at += bits) { // eight bytes are written, of which `bits` count
    const uint64_t v = eight(codes + i);
    __builtin_memcpy(out + at, &v, 8);
  }
  for (; i < n; i += 8) {
    uint8_t last[8] = {};
    __builtin_memcpy(last, codes + i, n - i < 8 ? n - i : 8);
    const uint64_t v = eight(last);
    const int64_t left = bytes - at < bits ? bytes - at : bits;
    __builtin_memcpy(out + at, &v, left);
    at += left;
  }
  for (; at < bytes; ++at) out[at] = 0;
}

} // namespace lc::LC_ISA
