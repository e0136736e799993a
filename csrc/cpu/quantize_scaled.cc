#include "../quantize_scaled.h"

#include "simd8.h"

namespace lc::LC_ISA {
namespace {

// Sums run in eight lanes on every instruction set, so that the order of the additions is the same on all.
typedef float V4F __attribute__((vector_size(16)));
typedef double V4D __attribute__((vector_size(32)));

LC_INLINE V4D low_doubles(V8F v) { return __builtin_convertvector(__builtin_shufflevector(v, v, 0, 1, 2, 3), V4D); }
LC_INLINE V4D high_doubles(V8F v) { return __builtin_convertvector(__builtin_shufflevector(v, v, 4, 5, 6, 7), V4D); }

struct Sum8 {
  V4D low{}, high{};
  [[gnu::always_inline]] void add(V8F a, V8F b) {
    low += low_doubles(a) * low_doubles(b), high += high_doubles(a) * high_doubles(b);
  }
  [[gnu::always_inline]] void add(V8F a, V8F b, V8F c) {
    low += low_doubles(a) * low_doubles(b) * low_doubles(c),
        high += high_doubles(a) * high_doubles(b) * high_doubles(c);
  }
  [[gnu::always_inline]] double total() const {
    const V4D v = low + high;
    return (v[0] + v[2]) + (v[1] + v[3]);
  }
};

constexpr int kUniform = -1; // in place of a depth: levels at equal distances

// Codes of eight values at once, by binary search over 2^kDepth - 1 thresholds: those of one step are one register,
// permuted. kDepth = 0, more than 16 levels: from a first guess, step by step.
template <int kDepth> struct Search {
  V8F step[4];
  QuantizeScaledBook book;

  [[gnu::always_inline]] Search(QuantizeScaledBook book) : book(book) {
    if (kDepth <= 0) return;
    const V8F a = load<V8F>(book.thresholds);
    if (kDepth == 4) {
      const V8F b = load<V8F>(book.thresholds + 8, 7);
      step[0] = __builtin_shufflevector(a, b, 7, 7, 7, 7, 7, 7, 7, 7);
      step[1] = __builtin_shufflevector(a, b, 3, 11, 3, 11, 3, 11, 3, 11);
      step[2] = __builtin_shufflevector(a, b, 1, 5, 9, 13, 1, 5, 9, 13);
      step[3] = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
    } else if (kDepth == 3) {
      step[0] = __builtin_shufflevector(a, a, 3, 3, 3, 3, 3, 3, 3, 3);
      step[1] = __builtin_shufflevector(a, a, 1, 5, 1, 5, 1, 5, 1, 5);
      step[2] = __builtin_shufflevector(a, a, 0, 2, 4, 6, 0, 2, 4, 6);
    } else if (kDepth == 2) {
      step[0] = __builtin_shufflevector(a, a, 1, 1, 1, 1, 1, 1, 1, 1);
      step[1] = __builtin_shufflevector(a, a, 0, 2, 0, 2, 0, 2, 0, 2);
    } else {
      step[0] = __builtin_shufflevector(a, a, 0, 0, 0, 0, 0, 0, 0, 0);
    }
  }

  [[gnu::always_inline]] V8U operator()(V8F x) const {
    if (kDepth == kUniform) return (V8U)cell(x, book.per_step, book.from, book.k);
    if (kDepth == 0) return by_guess(x);
    V8U code = -(V8U)(x > step[0]); // true is -1
    for (int d = 1; d < kDepth; ++d) code += code - (V8U)(x > lookup8(step[d], code));
    return code;
  }

private:
  static V8I cell(V8F x, float factor, float offset, int cells) {
    const V8F top = splat8(float(cells - 1));
    V8F at = x * splat8(factor) + splat8(offset);
    at = at > splat8(0.0f) ? at : splat8(0.0f);
    at = at < top ? at : top;
    return __builtin_convertvector(at, V8I);
  }

  [[gnu::always_inline]] V8U by_guess(V8F x) const {
    V8U code = gather_bytes8(book.first, (V8U)cell(x, book.factor, book.offset, kQuantizeScaledCells));
    // thresholds[-1] is -infinity and thresholds[k - 1] infinity.
    for (V8I up = x > gather8(book.thresholds, code); lane_bits8(up); up = x > gather8(book.thresholds, code))
      code -= (V8U)up; // true is -1
    for (V8I down = x <= gather8(book.thresholds - 1, code); lane_bits8(down);
         down = x <= gather8(book.thresholds - 1, code))
      code += (V8U)down;
    return code;
  }
};

template <int kDepth> struct Levels {
  V8F low, high;
  const float* levels;
  float lowest, step;

  [[gnu::always_inline]] Levels(QuantizeScaledBook book)
      : low(load<V8F>(book.levels)), high(load<V8F>(book.levels + 8)), levels(book.levels), lowest(book.lowest),
        step(book.step) {}

  [[gnu::always_inline]] V8F operator[](V8U code) const {
    if (kDepth == kUniform) return splat8(lowest) + splat8(step) * __builtin_convertvector((V8I)code, V8F);
    if (kDepth == 0) return gather8(levels, code);
    if (kDepth < 4) return lookup8(low, code);
    return select8(code << 28, lookup8(high, code), lookup8(low, code));
  }
};

// f.template operator()<kDepth>() for the depth that k needs, or kUniform where that will do.
template <class F> LC_INLINE auto with_depth(int k, const F& f) {
  if (k <= 2) return f.template operator()<1>();
  if (k <= 4) return f.template operator()<2>();
  if (k <= 8) return f.template operator()<3>();
  if (k <= 16) return f.template operator()<4>();
  return f.template operator()<0>();
}

template <class F> LC_INLINE auto with_depth_or_uniform(QuantizeScaledBook book, const F& f) {
  return book.step > 0 ? f.template operator()<kUniform>() : with_depth(book.k, f);
}

LC_INLINE V8F ones() { return splat8(1.0f); }

constexpr int kBlock = 64; // keys are computed kBlock at a time with vectors, then used one by one
static_assert(kBlock % kLanes == 0);

// The bins and the low bits of the keys of kBlock values. Returns a mask of those that are off the grid.
LC_INLINE VI block_keys(const float* x, QuantizeScaledGrid grid, int32_t* keys) {
  const VF base = splat(grid.base);
  VI off{};
  for (int i = 0; i < kBlock; i += kLanes) {
    const VF v = load<VF>(x + i);
    const VI key = (bits(abs(v) + base) - bits(base)) ^ VI(v < splat(0.0f)); // ~key below zero
    const VU bin = (VU)((key >> grid.shift) + grid.half);
    off |= VI(bin >= VU{} + uint32_t(2 * grid.half));
    store(keys + i, key);
  }
  return off;
}

// f(i, key) for every i; false if any is off the grid, in which case f has seen only some of them.
template <class F> LC_INLINE bool for_each_key(const float* x, int64_t n, QuantizeScaledGrid grid, const F& f) {
  alignas(64) int32_t keys[kBlock];
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) {
    if (any(block_keys(x + i, grid, keys))) return false;
    for (int j = 0; j < kBlock; ++j) f(i + j, keys[j]);
  }
  if (i < n) {
    float tail[kBlock] = {};
    __builtin_memcpy(tail, x + i, (n - i) * sizeof *x);
    if (any(block_keys(tail, grid, keys))) return false;
    for (int j = 0; i + j < n; ++j) f(i + j, keys[j]);
  }
  return true;
}

} // namespace

void quantize_scaled_sums(const float* x, const float* h, int64_t n, QuantizeScaledBook book, double* sums) {
  with_depth_or_uniform(book, [&]<int kDepth>() {
    const Search<kDepth> search(book);
    const Levels<kDepth> level(book);
    Sum8 xq, qq;
    int64_t i = 0;
    if (h) {
      for (; i + 8 <= n; i += 8) {
        const V8F v = load<V8F>(x + i), w = load<V8F>(h + i), q = level[search(v)];
        xq.add(w, v, q), qq.add(w, q, q);
      }
    } else {
      for (; i + 8 <= n; i += 8) {
        const V8F v = load<V8F>(x + i), q = level[search(v)];
        xq.add(v, q), qq.add(q, q);
      }
    }
    if (i < n) {
      V8F w{};
      for (int l = 0; l < n - i; ++l) w[l] = h ? h[i + l] : 1.0f;
      const V8F v = load<V8F>(x + i, n - i), q = level[search(v)];
      xq.add(w, v, q), qq.add(w, q, q);
    }
    sums[0] = xq.total(), sums[1] = qq.total();
  });
}

double quantize_scaled_codes(const float* x, const float* h, int64_t n, QuantizeScaledBook book, uint8_t* codes) {
  return with_depth(book.k, [&]<int kDepth>() {
    const Search<kDepth> search(book);
    const Levels<kDepth> level(book);
    Sum8 sum;
    const auto error = [&](V8F v, V8F q, V8F w, bool weighted) {
      const V4D low = low_doubles(v) - low_doubles(q), high = high_doubles(v) - high_doubles(q);
      sum.low += weighted ? low_doubles(w) * low * low : low * low;
      sum.high += weighted ? high_doubles(w) * high * high : high * high;
    };
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
      const V8F v = load<V8F>(x + i);
      const V8U code = search(v);
      if (h)
        error(v, level[code], load<V8F>(h + i), true);
      else
        error(v, level[code], v, false);
      store(codes + i, low_bytes8(code));
    }
    if (i < n) {
      const V8F v = load<V8F>(x + i, n - i);
      const V8U code = search(v);
      V8F w{};
      for (int l = 0; l < n - i; ++l) w[l] = h ? h[i + l] : 1.0f;
      error(v, level[code], w, true);
      for (int l = 0; l < n - i; ++l) codes[i + l] = uint8_t(code[l]);
    }
    return sum.total();
  });
}

int64_t quantize_scaled_filter(const float* x, const float* h, int64_t n, QuantizeScaledBook a, QuantizeScaledBook b,
                               float* x_kept, float* h_kept, uint8_t* code_a, uint8_t* code_b, double* sums) {
  return with_depth_or_uniform(a, [&]<int kDepth>() {
    const Search<kDepth> search_a(a), search_b(b);
    const Levels<kDepth> level(a);
    Sum8 xq, qq;
    int64_t kept = 0;
    for (int64_t i = 0; i < n; i += 8) {
      const int64_t left = n - i < 8 ? n - i : 8;
      const V8F v = left == 8 ? load<V8F>(x + i) : load<V8F>(x + i, left);
      V8F w = ones();
      if (h) w = left == 8 ? load<V8F>(h + i) : load<V8F>(h + i, left);
      const V8U code = search_a(v), other = search_b(v);
      V8I same = (V8I)(code == other);
      const V8F q = level[code];
      if (left < 8)
        for (int l = int(left); l < 8; ++l) w[l] = 0, same[l] = -1;
      const V8F fixed = (V8F)((V8I)w & same);
      xq.add(fixed, v, q), qq.add(fixed, q, q);
      for (uint32_t lanes = lane_bits8(~same); lanes; lanes &= lanes - 1) {
        const int l = __builtin_ctz(lanes);
        x_kept[kept] = v[l];
        if (h) h_kept[kept] = w[l];
        code_a[kept] = uint8_t(code[l]), code_b[kept] = uint8_t(other[l]);
        ++kept;
      }
    }
    sums[0] += xq.total(), sums[1] += qq.total();
    return kept;
  });
}

QuantizeScaledStats quantize_scaled_stats(const float* x, const float* h, int64_t n) {
  Sum8 energy;
  V8F largest{}, smallest_weight{};
  V8I bad{}, bad_weight{};
  for (int64_t i = 0; i < n; i += 8) {
    const int64_t left = n - i < 8 ? n - i : 8;
    const V8F v = left == 8 ? load<V8F>(x + i) : load<V8F>(x + i, left);
    V8F w = ones();
    if (h) w = left == 8 ? load<V8F>(h + i) : load<V8F>(h + i, left);
    const V8I magnitude = (V8I)v & 0x7fffffff;
    bad |= magnitude >= 0x7f800000;
    bad_weight |= ((V8I)w & 0x7fffffff) >= 0x7f800000;
    smallest_weight = w < smallest_weight ? w : smallest_weight;
    largest = (V8F)magnitude > largest ? (V8F)magnitude : largest;
    energy.add(w, v, v);
  }
  QuantizeScaledStats stats{energy.total(), 0, true, true};
  for (int l = 0; l < 8; ++l) {
    stats.largest = largest[l] > stats.largest ? largest[l] : stats.largest;
    stats.finite = stats.finite && !bad[l];
    stats.weights_good = stats.weights_good && !bad_weight[l] && smallest_weight[l] >= 0;
  }
  return stats;
}

bool quantize_scaled_histogram(const float* x, int64_t n, QuantizeScaledGrid grid, uint64_t* table) {
  const int32_t low_bits = int32_t((uint32_t(1) << grid.shift) - 1);
  uint64_t* middle = table + grid.half;
  return for_each_key(x, n, grid, [&](int64_t, int32_t key) {
    middle[key >> grid.shift] += (uint64_t(1) << 40) | uint32_t(key & low_bits);
  });
}

bool quantize_scaled_histogram_weighted(const float* x, const float* h, int64_t n, QuantizeScaledGrid grid, double* w,
                                        double* s) {
  bool good = true;
  return for_each_key(x, n, grid,
                      [&](int64_t i, int32_t key) {
                        const int bin = (key >> grid.shift) + grid.half;
                        good &= h[i] >= 0 && h[i] <= 3.4028234e38f;
                        w[bin] += double(h[i]);
                        s[bin] += double(h[i]) * double(__builtin_fabsf(x[i]));
                      }) &&
         good;
}

int64_t quantize_scaled_gather_ranges(const float* x, const float* h, int64_t n, QuantizeScaledGrid grid,
                                      const int32_t* first, const int32_t* last, int count, float* x_kept,
                                      float* h_kept) {
  const VF base = splat(grid.base);
  VI below[kQuantizeScaledRanges], above[kQuantizeScaledRanges];
  for (int r = 0; r < count; ++r) {
    below[r] = splat(int32_t(uint32_t(first[r]) << grid.shift) - 1);
    above[r] = splat(int32_t(uint32_t(last[r] + 1) << grid.shift));
  }
  int64_t kept = 0;
  const auto keep = [&](int64_t at, VI wanted) {
    for (uint32_t lanes = lane_bits(wanted); lanes; lanes &= lanes - 1) {
      const int64_t i = at + __builtin_ctz(lanes);
      x_kept[kept] = x[i];
      if (h) h_kept[kept] = h[i];
      ++kept;
    }
  };
  const auto wanted = [&](VF v) {
    const VI key = bits(abs(v) + base) - bits(base);
    VI in{};
    for (int r = 0; r < count; ++r) in |= (key > below[r]) & (above[r] > key);
    return in;
  };
  constexpr int kUnroll = 4;
  int64_t i = 0;
  for (; i + kUnroll * kLanes <= n; i += kUnroll * kLanes) {
    VI in[kUnroll], some{};
    for (int u = 0; u < kUnroll; ++u) some |= in[u] = wanted(load<VF>(x + i + u * kLanes));
    if (any(some))
      for (int u = 0; u < kUnroll; ++u) keep(i + u * kLanes, in[u]);
  }
  for (; i < n; i += kLanes) {
    const int64_t left = n - i < kLanes ? n - i : kLanes;
    VI in = wanted(load<VF>(x + i, left));
    for (int l = int(left); l < kLanes; ++l) in[l] = 0;
    keep(i, in);
  }
  return kept;
}

int64_t quantize_scaled_gather(const float* x, const float* h, int64_t n, QuantizeScaledGrid grid,
                               const uint8_t* wanted, float* x_kept, float* h_kept) {
  int64_t kept = 0;
  const uint8_t* middle = wanted + grid.half;
  for_each_key(x, n, grid, [&](int64_t i, int32_t key) {
    x_kept[kept] = x[i]; // branch-free: overwritten unless wanted
    if (h) h_kept[kept] = h[i];
    kept += middle[key >> grid.shift];
  });
  return kept;
}

} // namespace lc::LC_ISA
