// The histogram of quantize_scaled: what bounds phi where there are many values. Included by its .cc only.
#pragma once
#include <bit>

#include "quantize_scaled_search.h"

namespace lc::cpu::scaled {

inline uint32_t bits_of(float x) { return std::bit_cast<uint32_t>(x); }

// One side of zero: bins of |x| with prefix sums over them.
struct Side {
  std::vector<double> w, s; // w[j], s[j]: sums of h and h |x| over the bins from j on
  double weight(int64_t j) const { return w[size_t(j)] - w[size_t(j) + 1]; }
};

class Histogram {
public:
  // `scale` is the typical magnitude, `largest` a bound on all.
  Histogram(double scale, double largest, int64_t n, int k) {
    grid_.base = std::ldexp(1.0f, std::clamp(std::ilogb(std::max(2 * scale, double(FLT_MIN))) + 1, -126, 100));
    while (largest / double(grid_.base) > double(1 << 22)) grid_.base *= 2;
    grid_.shift = shift_for(n, k);
    const float top = std::min(float(largest) + grid_.base, FLT_MAX);
    grid_.half = int32_t((bits_of(top) - bits_of(grid_.base)) >> grid_.shift) + 2;
  }

  // False if there is a value beyond `largest`, or a bad weight.
  bool fill(const std::vector<Values>& parts) {
    const auto bins = 2 * size_t(grid_.half);
    w_.assign(bins, 0), s_.assign(bins, 0);
    for (const Values& v : parts)
      if (!(v.h ? add_weighted(v) : add(v))) return false;
    sum_up();
    return true;
  }

  // Empties bins.
  void drop(const std::vector<uint8_t>& unwanted) {
    for (size_t bin = 0; bin < w_.size(); ++bin)
      if (unwanted[bin]) w_[bin] = s_[bin] = 0;
    sum_up();
  }

  // sum h x^2, as if each bin were at its mean.
  double energy() const {
    double sum = 0;
    for (size_t bin = 0; bin < w_.size(); ++bin)
      if (w_[bin] > 0) sum += s_[bin] * (s_[bin] / w_[bin]);
    return sum;
  }

  const QuantizeScaledGrid& grid() const { return grid_; }
  const Side& side(bool negative) const { return sides_[negative]; }
  double edge(int64_t j) const {
    // The float of these bits as a double, also where it would be infinite.
    const uint64_t key = bits_of(grid_.base) + (uint64_t(j) << grid_.shift);
    return std::bit_cast<double>((key << 29) + (uint64_t(1023 - 127) << 52)) - double(grid_.base);
  }
  int64_t bin_of(double magnitude) const {
    const double t = std::min(magnitude + double(grid_.base), double(FLT_MAX));
    float f = float(t);
    if (double(f) > t) f = std::nextafterf(f, 0);
    return std::min<int64_t>((bits_of(f) - bits_of(grid_.base)) >> grid_.shift, grid_.half - 1);
  }

private:
  // Many bins cost time where values are few; wide bins bound phi badly, the more so the more thresholds there are.
  static int shift_for(int64_t n, int k) {
    if (k > 32) return n >= 1 << 18 ? 10 : 11;
    if (k > 8) return 13;
    return n >= 1 << 19 ? 13 : n >= 1 << 17 ? 14 : 15;
  }

  void sum_up() {
    const auto half = size_t(grid_.half);
    auto& [positive, negative] = sides_;
    for (Side* side : {&positive, &negative})
      side->w.resize(half + 1), side->s.resize(half + 1), side->w[half] = side->s[half] = 0;
    for (size_t j = half; j-- > 0;) { // four sums at once, since each addition waits for the one before
      negative.w[j] = negative.w[j + 1] + w_[half - 1 - j], negative.s[j] = negative.s[j + 1] + s_[half - 1 - j];
      positive.w[j] = positive.w[j + 1] + w_[half + j], positive.s[j] = positive.s[j + 1] + s_[half + j];
    }
  }

  bool add(const Values& v) {
    constexpr int64_t kFlush = 1 << 20;
    const auto kernel = LC_DISPATCH(quantize_scaled_histogram);
    const size_t bins = w_.size();
    const int64_t chunks = chunk_count(v.n, kChunk);
    const int64_t groups = std::min<int64_t>(chunks, omp_in_parallel() ? 1 : omp_get_max_threads());
    std::vector<std::vector<uint64_t>> counts(static_cast<size_t>(groups)), lows(static_cast<size_t>(groups));
    std::vector<uint8_t> good(size_t(groups), 1);
    parallel_for(groups, 1, [&](int64_t g, int64_t, int64_t) { // integers: the grouping does not matter
      auto &count = counts[size_t(g)], &low = lows[size_t(g)];
      count.resize(bins), low.resize(bins);
      std::vector<uint64_t> table(bins);
      const int64_t begin = chunks * g / groups * kChunk, end = std::min(v.n, chunks * (g + 1) / groups * kChunk);
      for (int64_t at = begin; at < end; at += kFlush) {
        if (!kernel(v.x + at, std::min(kFlush, end - at), grid_, table.data())) good[size_t(g)] = 0;
        for (size_t bin = 0; bin < bins; ++bin) {
          count[bin] += table[bin] >> 40, low[bin] += table[bin] & ((uint64_t(1) << 40) - 1);
          table[bin] = 0;
        }
      }
    });
    if (!std::all_of(good.begin(), good.end(), [](uint8_t g) { return g; })) return false;
    for (size_t bin = 0; bin < bins; ++bin) {
      uint64_t count = 0, low = 0;
      for (size_t g = 0; g < size_t(groups); ++g) count += counts[g][bin], low += lows[g][bin];
      if (count == 0) continue;
      const bool negative = bin < size_t(grid_.half);
      const int64_t j = negative ? grid_.half - 1 - int64_t(bin) : int64_t(bin) - grid_.half;
      if (negative) low = count * ((uint64_t(1) << grid_.shift) - 1) - low;
      const double step = (edge(j + 1) - edge(j)) / double(int64_t(1) << grid_.shift);
      w_[bin] += double(count), s_[bin] += double(count) * edge(j) + double(low) * step;
    }
    return true;
  }

  bool add_weighted(const Values& v) {
    constexpr int64_t kGroups = 8; // fixed, so that the order of the additions is
    const auto kernel = LC_DISPATCH(quantize_scaled_histogram_weighted);
    const size_t bins = w_.size();
    const int64_t groups = std::min(kGroups, chunk_count(v.n, 4 * kChunk)), chunks = chunk_count(v.n, kChunk);
    std::vector<std::vector<double>> w(static_cast<size_t>(groups)), s(static_cast<size_t>(groups));
    std::vector<uint8_t> good(size_t(groups), 1);
    parallel_for(groups, 1, [&](int64_t g, int64_t, int64_t) {
      w[size_t(g)].resize(bins), s[size_t(g)].resize(bins);
      const int64_t begin = chunks * g / groups * kChunk, end = std::min(v.n, chunks * (g + 1) / groups * kChunk);
      good[size_t(g)] = kernel(v.x + begin, v.h + begin, end - begin, grid_, w[size_t(g)].data(), s[size_t(g)].data());
    });
    if (!std::all_of(good.begin(), good.end(), [](uint8_t g) { return g; })) return false;
    for (size_t g = 0; g < size_t(groups); ++g)
      for (size_t bin = 0; bin < bins; ++bin) w_[bin] += w[g][bin], s_[bin] += s[g][bin];
    return true;
  }

  QuantizeScaledGrid grid_{};
  std::vector<double> w_, s_;
  Side sides_[2];
};

// phi and an assignment at the scale s, from the bins. In the bin that a threshold divides, the part above it weighs
// least if all is at the mean, and most if all is at the ends. The assignment moves the bin as a whole.
struct Coarse {
  double low, high; // bounds on phi
  Sums sums;
};

inline Coarse coarse_at(const Histogram& histogram, const Levels& levels, double s) {
  Coarse c{};
  const double zero = levels[levels.zero];
  const double all = histogram.side(false).w[0] + histogram.side(true).w[0];
  c.sums.a = zero * (histogram.side(false).s[0] - histogram.side(true).s[0]);
  c.sums.b = zero * zero * all;
  double slack = 0;
  c.low = 2 * c.sums.a - s * c.sums.b;
  for (int j = 0; j + 1 < levels.k; ++j) {
    const double mid = levels.mids[size_t(j)];
    if (mid == 0) { // at x = 0 for every s: above it, from the level that x = 0 has
      const double jump = levels[j + 1] - levels[j];
      c.sums.a += jump * histogram.side(false).s[0], c.low += 2 * jump * histogram.side(false).s[0];
      continue;
    }
    const Side& side = histogram.side(mid < 0);
    const double t = s * std::fabs(mid), jump = 2 * (levels[j + 1] - levels[j]);
    const auto bin = size_t(histogram.bin_of(t));
    const double w = side.w[bin] - side.w[bin + 1], sum = side.s[bin] - side.s[bin + 1];
    double w_above = side.w[bin + 1], s_above = side.s[bin + 1];
    if (w > 0) {
      const double low = histogram.edge(int64_t(bin)), high = histogram.edge(int64_t(bin) + 1);
      const double mean = std::clamp(sum / w, low, high), at_mean = w * std::max(0.0, mean - t);
      const double at_ends = w * (mean - low) / (high - low) * std::max(0.0, high - t);
      slack += jump * std::max(0.0, at_ends - at_mean);
      if (mean > t) w_above += w, s_above += sum;
    }
    c.low += jump * (s_above - t * w_above);
    c.sums.a += jump / 2 * s_above;
    c.sums.b += jump * std::fabs(mid) * w_above;
  }
  c.high = c.low + slack;
  return c;
}

// The ranges of bins, by their distance from zero, that are wanted on both sides; none if that is not all there is, or
// too many.
struct Ranges {
  std::array<int32_t, kQuantizeScaledRanges> first, last;
  int count = 0;
  Ranges(const std::vector<uint8_t>& wanted) {
    const size_t half = wanted.size() / 2;
    for (size_t j = 0; j < half; ++j) {
      const bool is = wanted[half + j], starts = is && (j == 0 || !wanted[half + j - 1]);
      if (is != bool(wanted[half - 1 - j]) || (starts && count == kQuantizeScaledRanges)) {
        count = 0;
        return;
      }
      if (starts) first[size_t(count++)] = int32_t(j);
      if (is) last[size_t(count - 1)] = int32_t(j);
    }
  }
};

// The values in wanted bins.
inline Collection collect(const std::vector<Values>& parts, const Histogram& histogram,
                          const std::vector<uint8_t>& wanted) {
  const auto kernel = LC_DISPATCH(quantize_scaled_gather);
  const auto kernel_of_ranges = LC_DISPATCH(quantize_scaled_gather_ranges);
  const Ranges ranges(wanted);
  Collection kept;
  for (const Values& v : parts) {
    std::vector<Collection> chunk(size_t(chunk_count(v.n, kChunk)));
    parallel_for(v.n, kChunk, [&](int64_t c, int64_t begin, int64_t end) {
      thread_local std::vector<float> x(kChunk), h(kChunk);
      const float *from = v.x + begin, *weights = v.h ? v.h + begin : nullptr;
      const int64_t n = ranges.count > 0
                            ? kernel_of_ranges(from, weights, end - begin, histogram.grid(), ranges.first.data(),
                                               ranges.last.data(), ranges.count, x.data(), h.data())
                            : kernel(from, weights, end - begin, histogram.grid(), wanted.data(), x.data(), h.data());
      chunk[size_t(c)].x.assign(x.begin(), x.begin() + n);
      if (v.h) chunk[size_t(c)].h.assign(h.begin(), h.begin() + n);
    });
    for (const Collection& c : chunk) {
      kept.x.insert(kept.x.end(), c.x.begin(), c.x.end());
      kept.h.insert(kept.h.end(), c.h.begin(), c.h.end());
    }
  }
  return kept;
}

// Marks the bins that a threshold crosses between the scales a and b. Returns their weight.
inline double mark(const Histogram& histogram, const Levels& levels, double a, double b, std::vector<uint8_t>& wanted) {
  const int64_t half = histogram.grid().half;
  wanted.assign(size_t(2 * half), 0);
  double weight = 0;
  for (int j = 0; j + 1 < levels.k; ++j) {
    const double mid = levels.mids[size_t(j)], m = std::fabs(mid);
    if (mid == 0) continue;
    for (int64_t bin = histogram.bin_of(a * m); bin <= histogram.bin_of(b * m); ++bin) {
      uint8_t& mark = wanted[size_t(mid < 0 ? half - 1 - bin : half + bin)];
      if (!mark) weight += histogram.side(mid < 0).weight(bin);
      mark = 1;
    }
  }
  return weight;
}

} // namespace lc::cpu::scaled
