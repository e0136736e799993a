#include "../kmeans1d.h"

#include "kmeans1d_labels.h"
#include "kmeans1d_partition.h"
#include "simd.h"

namespace lc::LC_ISA {
namespace {

constexpr uint32_t kBias = 3u << 30;

// f(i, key) for every i; false if any is off the grid, in which case f has seen only some of them.
template <class F> LC_INLINE bool for_each_key(const float* x, int64_t n, Kmeans1dGrid grid, const F& f) {
  alignas(64) int32_t keys[kKeyBlock];
  int64_t i = 0;
  for (; i + kKeyBlock <= n; i += kKeyBlock) {
    if (any(block_keys<kKeyBlock>(x + i, grid, keys, 0, 0))) return false;
    for (int j = 0; j < kKeyBlock; ++j) f(i + j, keys[j]);
  }
  if (i < n) {
    float tail[kKeyBlock];
    for (int j = 0; j < kKeyBlock; ++j) tail[j] = i + j < n ? x[i + j] : grid.center;
    if (any(block_keys<kKeyBlock>(tail, grid, keys, 0, 0))) return false;
    for (int j = 0; i + j < n; ++j) f(i + j, keys[j]);
  }
  return true;
}

// The keys of a block, without the bits that sums leave out, and biased. False if any is off the grid. Eight lanes on
// every instruction set: a key is read from what a store of sixteen wrote with a delay.
LC_INLINE bool biased_keys(const float* x, Kmeans1dGrid grid, uint32_t* keys) {
  const V8F center = splat8(grid.center), base = splat8(grid.base);
  const V8I base_bits = (V8I)base;
  V8I off{};
  fetch_ahead<kKeyBlock>(x);
  for (int i = 0; i < kKeyBlock; i += 8) {
    const V8F t = load<V8F>(x + i) - center;
    const V8I key = (V8I)((V8F)((V8I)t & 0x7fffffff) + base) - base_bits;
    off |= (key >> grid.shift) >= (V8I{} + grid.half);
    store(keys + i, (V8U)((key ^ V8I(t < splat8(0.0f))) >> grid.drop) + kBias); // ~key below the center
  }
  return lane_bits8(off) == 0;
}

typedef double V2D __attribute__((vector_size(16)));
typedef uint64_t V4U __attribute__((vector_size(32)));

} // namespace

bool kmeans1d_histogram(const float* x, int64_t n, Kmeans1dGrid grid, uint64_t* table, int64_t stride) {
  // Two tables, since an addition to a bin waits for the one before. Each key is count and sum at once: the count is
  // recovered by a division, which is a third quicker than to mask the key and set a bit for the count. Keys are read
  // in pairs, a block after they were stored: .37 ns a value, where single keys of the same block take .46.
  const int shift = grid.shift - grid.drop;
  uint64_t* first = table + grid.half - (kBias >> shift);
  uint64_t* second = first + stride;
  alignas(64) uint32_t blocks[2][kKeyBlock];
  uint32_t *keys = blocks[0], *ahead = blocks[1];
  int64_t i = 0;
  if (n >= kKeyBlock && !biased_keys(x, grid, keys)) return false;
  for (; i + kKeyBlock <= n; i += kKeyBlock) {
    if (i + 2 * kKeyBlock <= n && !biased_keys(x + i + kKeyBlock, grid, ahead)) return false;
#pragma GCC unroll 4
    for (int j = 0; j < kKeyBlock; j += 2) {
      uint64_t pair;
      __builtin_memcpy(&pair, keys + j, sizeof pair);
      const uint32_t a = uint32_t(pair);
      first[a >> shift] += a;
      second[pair >> (32 + shift)] += pair >> 32;
    }
    uint32_t* swap = keys;
    keys = ahead, ahead = swap;
  }
  return for_each_key(x + i, n - i, grid, [&](int64_t, int32_t key) {
    const uint32_t a = uint32_t(key >> grid.drop) + kBias;
    first[a >> shift] += a;
  });
}

void kmeans1d_flush(uint64_t* table, int64_t stride, Kmeans1dGrid grid, double* count, double* low) {
  const int shift = grid.shift - grid.drop;
  const int64_t bins = 2 * int64_t(grid.half);
  // Entries are below 2^52: the bits of 2^52 before them make them doubles.
  constexpr uint64_t kMagic = 0x4330000000000000;
  V4D least = V4D{0, 1, 2, 3} * double(1 << shift) + (double(kBias) - double(grid.half) * double(1 << shift));
  for (int64_t bin = 0; bin < bins; bin += 4) {
    const int64_t left = bins - bin < 4 ? bins - bin : 4;
    V4D counts{}, lows{};
    for (uint64_t* at = table + bin; at <= table + bin + stride; at += stride) {
      const V4D v = (V4D)(load<V4U>(at) | kMagic) - 0x1p52; // the tables have 4 entries to spare
      const V4D magic = V4D{} + 0x1.8p52;
      V4D c = (v / least + magic) - magic; // to the nearest integer: one too many where the rest is large
      c -= (V4D)((V4U)(c * least > v) & (V4U)(V4D{} + 1.0));
      counts += c;
      lows += v - c * least;
      store(at, V4U{});
    }
    if (left == 4) {
      store(count + bin, load<V4D>(count + bin) + counts);
      store(low + bin, load<V4D>(low + bin) + lows);
    } else {
      for (int64_t l = 0; l < left; ++l) count[bin + l] += counts[l], low[bin + l] += lows[l];
    }
    least += 4 * double(1 << shift);
  }
}

bool kmeans1d_histogram_weighted(const float* x, const float* h, int64_t n, Kmeans1dGrid grid, double* sums) {
  alignas(64) int32_t keys[kKeyBlock];
  alignas(64) double pairs[2 * kKeyBlock];
  double* middle = sums + 2 * grid.half;
  float x_tail[kKeyBlock], h_tail[kKeyBlock];
  for (int64_t i = 0; i < n; i += kKeyBlock) {
    const float *values = x + i, *weights = h + i;
    if (n - i < kKeyBlock) {
      for (int64_t j = 0; j < kKeyBlock; ++j) {
        x_tail[j] = i + j < n ? x[i + j] : grid.center;
        h_tail[j] = i + j < n ? h[i + j] : 0.0f;
      }
      values = x_tail, weights = h_tail;
    } else {
      fetch_ahead<kKeyBlock>(weights);
    }
    VI bad = block_keys<kKeyBlock>(values, grid, keys, grid.shift, 0);
    for (int j = 0; j < kKeyBlock; j += kLanes) { // as integers: below the bits of infinity, or those of -0
      const VI b = bits(load<VF>(weights + j));
      bad |= VI((VU)b >= VU{} + 0x7f800000u) & VI(b != splat(int32_t(0x80000000)));
    }
    if (any(bad)) return false;
    for (int j = 0; j < kKeyBlock; j += 4) {
      const V4D t = widen4(load<V4F>(values + j)) - double(grid.center), w = widen4(load<V4F>(weights + j)), s = w * t;
      store(pairs + 2 * j, __builtin_shufflevector(w, s, 0, 4, 1, 5));
      store(pairs + 2 * j + 4, __builtin_shufflevector(w, s, 2, 6, 3, 7));
    }
    for (int j = 0; j < kKeyBlock; ++j) {
      double* at = middle + 2 * keys[j];
      store(at, load<V2D>(at) + load<V2D>(pairs + 2 * j));
    }
  }
  return true;
}

int64_t kmeans1d_gather(const float* x, int64_t n, Kmeans1dGrid grid, const uint8_t* wanted, uint32_t* at) {
  int64_t found = 0;
  const uint8_t* middle = wanted + grid.half;
  for_each_key(x, n, grid, [&](int64_t i, int32_t key) {
    at[found] = uint32_t(i); // branch-free: overwritten unless wanted
    found += middle[key >> grid.shift];
  });
  return found;
}

Kmeans1dRange kmeans1d_range(const float* x, int64_t n) {
  VF low = splat(x[0]), high = low;
  VI bad{};
  for (int64_t i = 0; i < n; i += kLanes) {
    VF v = low;
    if (n - i >= kLanes)
      v = load<VF>(x + i);
    else
      for (int l = 0; i + l < n; ++l) v[l] = x[i + l];
    bad |= ~(splat(0x7f800000) > (bits(v) & 0x7fffffff));
    low = min(v, low);
    high = max(v, high);
  }
  Kmeans1dRange range{low[0], high[0], !any(bad)};
  for (int l = 1; l < kLanes; ++l) {
    range.low = low[l] < range.low ? low[l] : range.low;
    range.high = high[l] > range.high ? high[l] : range.high;
  }
  return range;
}

void kmeans1d_rank(const float* x, int n, int32_t* rank) {
  for (int i = 0; i < n; ++i) {
    const VF value = splat(x[i]);
    VI before{};
    int j = 0, count = 0;
    for (; j + kLanes <= i; j += kLanes) before -= (load<VF>(x + j) <= value);
    for (; j < i; ++j) count += x[j] <= x[i];
    for (; j + kLanes <= n; j += kLanes) before -= (load<VF>(x + j) < value);
    for (; j < n; ++j) count += x[j] < x[i];
    for (int l = 0; l < kLanes; ++l) count += before[l];
    rank[i] = count;
  }
}

} // namespace lc::LC_ISA
