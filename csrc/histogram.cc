#include "histogram.h"

#include <bit>
#include <cfloat>
#include <cstring>

#include "error.h"
#include "parallel.h"
#include "rate_distortion.h"

namespace lc::cpu {
namespace {

constexpr int kMaxHalf = 4096; // bins on either side: a table fits the L2 cache

uint32_t bits_of(float x) { return std::bit_cast<uint32_t>(x); }

bool is_finite(float x) { return (bits_of(x) & 0x7f800000) != 0x7f800000; }

double median(std::vector<float>& v) {
  const auto middle = v.begin() + std::ptrdiff_t(v.size() / 2);
  std::nth_element(v.begin(), middle, v.end());
  return double(*middle);
}

} // namespace

void Histogram::make_grid(double at, double scale, double reach) {
  grid_ = {};
  grid_.center = float(at);
  // Between the smallest normal float and one that FLT_MAX absorbs in rounding.
  grid_.base = std::ldexp(1.0f, std::clamp(scale > 0 ? std::ilogb(scale) : -126, -126, 100));
  const double top = std::min(reach + double(grid_.base), double(FLT_MAX));
  const uint32_t keys = bits_of(float(top)) - bits_of(grid_.base);
  // One bin to spare, since the kernels round x - center, and the sum with base, to float; but none for infinity.
  while (int64_t(keys >> grid_.shift) + 2 > kMaxHalf) ++grid_.shift;
  grid_.half = int32_t(std::min((keys >> grid_.shift) + 2, (0x7f800000u - bits_of(grid_.base)) >> grid_.shift));
  center = double(grid_.center);
  bins = 2 * grid_.half;
  edges_.resize(size_t(bins) + 1);
  for (int64_t j = 0; j <= grid_.half; ++j) {
    const int64_t b = int64_t(bits_of(grid_.base)) + (j << grid_.shift);
    const double distance = std::ldexp(double((b & 0x7fffff) | 0x800000), int(b >> 23) - 150) - double(grid_.base);
    edges_[size_t(grid_.half + j)] = distance, edges_[size_t(grid_.half - j)] = -distance;
  }
}

Histogram::Histogram(const std::vector<cpu::Piece>& pieces, int64_t n, bool center_zero) {
  std::vector<float> sample = sample_of(pieces, n, 2048).x;
  std::erase_if(sample, [](float v) { return !is_finite(v); });
  if (sample.empty()) sample.push_back(0);
  const double middle = center_zero ? 0 : median(sample);
  std::vector<float> distance;
  double reach = 0;
  for (const float v : sample) {
    const double d = std::fabs(double(v) - middle);
    reach = std::max(reach, d);
    if (d > 0 && d <= double(FLT_MAX)) distance.push_back(float(d));
  }
  const double scale = distance.empty() ? 0 : median(distance);
  make_grid(middle, scale, 2 * reach);
  if (fill(pieces)) return;
  // Something lies beyond the sample's reach, or is not finite.
  double low = DBL_MAX, high = -DBL_MAX;
  for (const cpu::Piece& piece : pieces)
    for (int64_t i = 0; i < piece.n; ++i) {
      if (!is_finite(piece.x[i])) {
        finite = false;
        return;
      }
      low = std::min(low, double(piece.x[i])), high = std::max(high, double(piece.x[i]));
    }
  // Far from zero on both sides, x - center could overflow: center on zero then.
  const double at = high - low < double(FLT_MAX) / 4 ? middle : 0;
  const double furthest = std::max(high - at, at - low);
  make_grid(at, scale > FLT_MIN ? scale : furthest / 64, furthest);
  LC_CHECK(fill(pieces));
}

// Counts and sums are integers, so it does not matter which thread adds what; sums of squares are kept by piece.
bool Histogram::fill(const std::vector<cpu::Piece>& pieces) {
  constexpr int64_t kFlush = 1 << 20; // low bits < 2^19, so their sum stays below 2^39 < 2^40
  const auto kernel = LC_DISPATCH(value_histogram);
  const int64_t size = int64_t(pieces.size());
  const int64_t groups = std::min<int64_t>(size, omp_in_parallel() ? 1 : omp_get_max_threads());
  std::vector<std::vector<uint64_t>> counts(static_cast<size_t>(groups)), lows(static_cast<size_t>(groups));
  std::vector<uint8_t> on_grid(size_t(groups), 1);
  std::vector<double> squares_of(pieces.size());
  parallel_for(groups, 1, [&](int64_t g, int64_t, int64_t) {
    auto &total = counts[size_t(g)], &low = lows[size_t(g)];
    total.resize(size_t(bins)), low.resize(size_t(bins));
    std::vector<uint64_t> table(static_cast<size_t>(bins));
    int64_t pending = 0;
    const auto flush = [&] {
      for (size_t b = 0; b < size_t(bins); ++b) {
        total[b] += table[b] >> 40;
        low[b] += table[b] & ((uint64_t(1) << 40) - 1);
        table[b] = 0;
      }
      pending = 0;
    };
    for (int64_t p = g; p < size && on_grid[size_t(g)]; p += groups) {
      const cpu::Piece& piece = pieces[size_t(p)];
      on_grid[size_t(g)] = kernel(piece.x, piece.n, grid_, table.data(), &squares_of[size_t(p)]);
      if ((pending += piece.n) > kFlush - kPiece) flush();
    }
    flush();
  });
  if (std::count(on_grid.begin(), on_grid.end(), 0)) return false;
  squares = 0;
  for (const double s : squares_of) squares += s;
  count.assign(size_t(bins), 0), sum.assign(size_t(bins), 0), prefix_.assign(size_t(bins) + 1, {0, 0, 0});
  const double steps = double(int64_t(1) << grid_.shift);
  for (int b = 0; b < bins; ++b) {
    int64_t total = 0, lows_sum = 0;
    for (size_t g = 0; g < counts.size(); ++g)
      total += int64_t(counts[g][size_t(b)]), lows_sum += int64_t(lows[g][size_t(b)]);
    // A key of low bits l lies l steps above the lower edge, on either side of the center; below it a value of the key
    // ~m lies m steps from the center, so one step more.
    const double step = (high(b) - low(b)) / steps;
    if (b < grid_.half) lows_sum += total;
    count[size_t(b)] = double(total);
    sum[size_t(b)] = double(total) * low(b) + double(lows_sum) * step;
    const Part &before = prefix_[size_t(b)], part = inside(b, high(b));
    prefix_[size_t(b) + 1] = {before.w + part.w, before.s + part.s, before.q + part.q};
  }
  return true;
}

int Histogram::bin_of(double t) const {
  const float a = std::fabs(float(t)) + grid_.base;
  int32_t key = int32_t(bits_of(std::min(a, FLT_MAX)) - bits_of(grid_.base));
  if (t < 0) key = ~key;
  int b = std::clamp((key >> grid_.shift) + grid_.half, 0, bins - 1);
  while (b > 0 && t < low(b)) --b; // rounding to float may have crossed an edge
  while (b + 1 < bins && t >= high(b)) ++b;
  return b;
}

// What a bin has at or below t.
Histogram::Part Histogram::inside(int bin, double t) const {
  const double w = count[size_t(bin)];
  if (w == 0) return {0, 0, 0};
  const double mean = sum[size_t(bin)] / w;
  const double reach = std::max(std::min(mean - low(bin), high(bin) - mean), 1e-300), from = mean - reach;
  if (t >= high(bin)) return {w, sum[size_t(bin)], w * (mean * mean + reach * reach / 3)};
  const double part = std::clamp((t - from) / (2 * reach), 0.0, 1.0), to = from + 2 * reach * part;
  return {w * part, w * part * (from + to) / 2, w * part * (from * from + from * to + to * to) / 3};
}

Histogram::Part Histogram::below(double t) const {
  if (!(t >= low(0))) return {0, 0, 0};
  if (t >= high(bins - 1)) return all();
  const int b = bin_of(t);
  const Part &before = prefix_[size_t(b)], part = inside(b, t);
  return {before.w + part.w, before.s + part.s, before.q + part.q};
}

double Histogram::least_cost(const std::vector<Piece>& cost) const {
  double total = 0, spread = squares,
         hidden = 0; // of the values about the means of their bins; what of it may not count
  size_t p = 0;
  for (int b = 0; b < bins; ++b) {
    const double w = count[size_t(b)], mean = w > 0 ? sum[size_t(b)] / w : 0;
    if (w == 0) continue;
    while (cost[p].end <= low(b)) ++p;
    spread -= w * mean * mean;
    const double most = w * std::max(0.0, (mean - low(b)) * (high(b) - mean));
    if (high(b) <= cost[p].end) {
      total += w * (cost[p].offset + (cost[p].flat ? 0 : (mean - cost[p].center) * (mean - cost[p].center)));
      if (cost[p].flat) hidden += most;
      continue;
    }
    double least = DBL_MAX, from = low(b); // of the pieces in this bin
    for (size_t q = p; from < high(b); from = cost[q++].end) {
      const double d =
          cost[q].flat ? 0 : cost[q].center - std::clamp(cost[q].center, from, std::min(cost[q].end, high(b)));
      least = std::min(least, cost[q].offset + d * d);
    }
    total += w * least;
    hidden += most;
  }
  return total + std::max(0.0, spread - hidden) - 2e-7 * squares;
}

} // namespace lc::cpu
