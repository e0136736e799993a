#include "kmeans1d_mass.h"

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <memory>

#include "error.h"
#include "parallel.h"

namespace lc::cpu::kmeans {
namespace {

// The distance from the center at which the keys of a bin begin: key 0 is base itself.
double distance(const Kmeans1dGrid& grid, int64_t magnitude) {
  const uint64_t b = uint64_t(bits_of(grid.base)) + (uint64_t(magnitude) << grid.shift);
  return double_of((b << 29) + (uint64_t(1023 - 127) << 52)) - double(grid.base); // the float with bits b, as a double
}

// The grid that a sample of the data suggests, with room for values four times as far out as the sample's.
Kmeans1dGrid sampled_grid(const std::vector<Chunk>& chunks, int64_t n, int half) {
  constexpr int64_t kLine = 16;
  const int64_t lines = std::clamp<int64_t>(n / 256, 4, 32);
  float sample[32 * kLine];
  int size = 0;
  int64_t before = 0;
  auto chunk = chunks.begin();
  for (int64_t line = 0; line < lines; ++line) {
    const int64_t at = line * (n - kLine) / (lines - 1);
    while (before + chunk->size <= at) before += chunk++->size;
    const float* from = chunk->x + (at - before);
    for (int64_t i = 0; i < std::min(kLine, before + chunk->size - at); ++i)
      if (is_finite(from[i])) sample[size++] = from[i];
  }
  if (!size) return make_grid(0, 1, 1, half);
  const auto median = [](float* v, int count) {
    std::nth_element(v, v + count / 2, v + count);
    return double(v[count / 2]);
  };
  const double center = median(sample, size);
  double reach = 0;
  int apart = 0;
  for (int i = 0; i < size; ++i) {
    const double d = std::fabs(double(sample[i]) - center);
    reach = std::max(reach, d);
    if (d > 0 && d <= double(FLT_MAX)) sample[apart++] = float(d);
  }
  return make_grid(center, apart ? 4 * median(sample, apart) : 0, 4 * reach, half);
}

} // namespace

Kmeans1dGrid make_grid(double center, double scale, double reach, int half) {
  Kmeans1dGrid grid{};
  grid.center = float(center);
  // Between the smallest normal float and one that FLT_MAX absorbs in rounding.
  grid.base = std::ldexp(1.0f, std::clamp(scale > 0 ? std::ilogb(scale) : -126, -126, 100));
  const double top = std::min(reach + double(grid.base), double(FLT_MAX));
  const uint32_t keys = bits_of(float(top)) - bits_of(grid.base);
  // One bin to spare, since the kernels round x - center, and the sum with base, to float; but none for infinity.
  while (int64_t(keys >> grid.shift) + 2 > half) ++grid.shift;
  grid.half = int32_t(std::min((keys >> grid.shift) + 2, (0x7f800000u - bits_of(grid.base)) >> grid.shift));
  return grid;
}

double Mass::edge(int bin) const {
  const int64_t j = int64_t(bin) - grid.half;
  return j < 0 ? -distance(grid, -j) : distance(grid, j);
}

// ---- distinct values
// -------------------------------------------------------------------------------------------------

void Mass::take_sorted(const std::vector<double>& weights) {
  binned = false;
  center = values.empty() ? 0 : double(values[values.size() / 2]);
  const size_t m = values.size();
  t_.resize(m), t_w_.resize(m + 1), t_s_.resize(m + 1);
  double w = 0, s = 0;
  for (size_t i = 0; i < m; ++i) {
    t_[i] = double(values[i]) - center, t_w_[i] = w, t_s_[i] = s;
    w += weights[i], s += weights[i] * t_[i];
  }
  t_w_[m] = w, t_s_[m] = s;
  total_ = {w, s};
}

void Mass::take_small(const Chunk& chunk) {
  const int n = int(chunk.size);
  int32_t rank[kSmall];
  float x[kSmall], h[kSmall];
  finite = true;
  for (int i = 0; i < n; ++i) finite &= is_finite(chunk.x[i]);
  if (!finite) return;
  LC_DISPATCH(kmeans1d_rank)(chunk.x, n, rank);
  for (int i = 0; i < n; ++i) x[rank[i]] = chunk.x[i], h[rank[i]] = chunk.h ? chunk.h[i] : 1.0f;
  static thread_local std::vector<double> weights;
  values.clear(), weights.clear();
  for (int i = 0; i < n; ++i) {
    if (!(h[i] > 0)) continue;
    if (values.empty() || values.back() != x[i])
      values.push_back(x[i] + 0.0f), weights.push_back(double(h[i])); // -0 becomes 0
    else
      weights.back() += double(h[i]);
  }
  take_sorted(weights);
}

// A small open-addressing table, which stops at the first value too many.
bool Mass::take_values(const std::vector<Chunk>& chunks, int64_t n, int limit) {
  constexpr uint32_t kEmpty = 0xffffffff; // the bits of a NaN
  const uint32_t size = std::bit_ceil(uint32_t(4 * std::min<int64_t>(n, limit)));
  struct Slot {
    uint32_t bits;
    double w;
  };
  static thread_local std::vector<Slot> slots;
  slots.assign(size, Slot{kEmpty, 0});
  int used = 0;
  for (const Chunk& chunk : chunks)
    for (int64_t i = 0; i < chunk.size; ++i) {
      if (!is_finite(chunk.x[i])) return finite = false;
      const uint32_t b = bits_of(chunk.x[i] + 0.0f); // -0 and +0 are one value
      uint32_t slot = b * 2654435761u;
      slot = (slot ^ (slot >> 15)) * 2246822519u;
      slot = (slot ^ (slot >> 13)) & (size - 1);
      while (slots[slot].bits != b && slots[slot].bits != kEmpty) slot = (slot + 1) & (size - 1);
      if (slots[slot].bits == kEmpty && ++used > limit) return false;
      slots[slot].bits = b;
      slots[slot].w += chunk.h ? double(chunk.h[i]) : 1.0;
    }
  std::vector<std::pair<float, double>> found;
  for (const Slot& slot : slots)
    if (slot.bits != kEmpty && slot.w > 0) found.emplace_back(float_of(slot.bits), slot.w);
  std::sort(found.begin(), found.end());
  values.clear();
  std::vector<double> weights;
  for (const auto& [value, w] : found) values.push_back(value), weights.push_back(w);
  take_sorted(weights);
  return true;
}

// ---- bins
// ------------------------------------------------------------------------------------------------------------

bool Mass::take_bins(const std::vector<Chunk>& chunks, int64_t n, int half) {
  const bool weighted = chunks[0].h != nullptr;
  const auto filled = [&] { return weighted ? fill_weighted(chunks, n) : fill(chunks, n); };
  binned = true;
  slot_.clear(), opened_.clear(), t_.clear(), t_w_.clear(), t_s_.clear();
  grid = sampled_grid(chunks, n, half);
  if (!filled()) { // something lies beyond the sample's reach, or is not finite
    std::vector<Kmeans1dRange> ranges(chunks.size());
    const auto kernel = LC_DISPATCH(kmeans1d_range);
    parallel_for(int64_t(chunks.size()), 1, [&](int64_t c, int64_t, int64_t) {
      ranges[size_t(c)] = kernel(chunks[size_t(c)].x, chunks[size_t(c)].size);
    });
    double low = DBL_MAX, high = -DBL_MAX;
    for (const Kmeans1dRange& r : ranges) {
      finite &= r.finite;
      low = std::min(low, double(r.low)), high = std::max(high, double(r.high));
    }
    if (!finite) return false;
    // Far from zero on both sides, x - center could overflow: center on zero then.
    const double middle = high - low < double(FLT_MAX) / 4 ? double(grid.center) : 0;
    const double reach = std::max(high - middle, middle - low);
    const double scale = double(grid.base) > double(FLT_MIN) ? double(grid.base) : reach / 64;
    grid = make_grid(middle, scale, reach, half);
    if (!filled()) {
      LC_CHECK(weighted); // then it is a weight
      return false;
    }
  }
  center = double(grid.center);
  sum_up(weighted);
  return true;
}

// Counts and sums are integers, so it does not matter which thread adds what.
bool Mass::fill(const std::vector<Chunk>& chunks, int64_t n) {
  // Of the bits of a key within a bin, the sums keep what lets `pending` values, or all, go between flushes.
  const int most = int(std::bit_width(uint64_t(std::min(n, kChunk) / 2 + 64)));
  const int room = std::min(31 - most, 28 - int(std::bit_width(uint32_t(grid.half))));
  grid.drop = std::max(0, grid.shift - room);
  const int64_t pending_limit = int64_t(1) << (32 - (grid.shift - grid.drop));
  const size_t bins = 2 * size_t(grid.half);
  const int64_t stride = int64_t(bins + 72) / 8 * 8; // apart from 4096: or the two tables share sets of the cache
  const auto kernel = LC_DISPATCH(kmeans1d_histogram);
  const auto flush = LC_DISPATCH(kmeans1d_flush);
  const int64_t count = int64_t(chunks.size());
  const int64_t groups = std::min<int64_t>(count, omp_in_parallel() ? 1 : omp_get_max_threads());
  std::vector<std::vector<double>> others(static_cast<size_t>(2 * (groups - 1)));
  std::vector<uint8_t> on_grid(size_t(groups), 1);
  w_.assign(bins, 0), low_.assign(bins, 0);
  parallel_for(groups, 1, [&](int64_t g, int64_t, int64_t) {
    static thread_local std::vector<uint64_t> table; // all zeros between calls
    if (table.size() < 2 * size_t(stride)) table.resize(2 * size_t(stride));
    double *w = w_.data(), *low = low_.data();
    if (g) {
      for (size_t i = 0; i < 2; ++i) others[2 * size_t(g - 1) + i].resize(bins);
      w = others[2 * size_t(g - 1)].data(), low = others[2 * size_t(g - 1) + 1].data();
    }
    int64_t pending = 0;
    for (int64_t c = g; c < count; c += groups) {
      const Chunk& chunk = chunks[size_t(c)];
      if (pending + chunk.size + 128 > pending_limit) flush(table.data(), stride, grid, w, low), pending = 0;
      if (!kernel(chunk.x, chunk.size, grid, table.data(), stride)) {
        on_grid[size_t(g)] = 0;
        std::fill(table.begin(), table.end(), 0);
        return;
      }
      pending += chunk.size;
    }
    flush(table.data(), stride, grid, w, low);
  });
  if (std::count(on_grid.begin(), on_grid.end(), 0)) return false;
  for (size_t g = 0; g < others.size(); g += 2)
    for (size_t b = 0; b < bins; ++b) w_[b] += others[g][b], low_[b] += others[g + 1][b];
  return true;
}

// Floating-point sums: a fixed grouping, combined in order.
bool Mass::fill_weighted(const std::vector<Chunk>& chunks, int64_t n) {
  const auto kernel = LC_DISPATCH(kmeans1d_histogram_weighted);
  const size_t bins = 2 * size_t(grid.half);
  const int64_t wanted = std::clamp<int64_t>(n >> 19, 1, 16);
  const int64_t size = chunk_count(int64_t(chunks.size()), wanted);
  std::vector<std::vector<double>> sums(size_t(chunk_count(int64_t(chunks.size()), size)));
  std::vector<uint8_t> good(sums.size(), 1);
  parallel_for(int64_t(chunks.size()), size, [&](int64_t g, int64_t begin, int64_t end) {
    auto& sum = sums[size_t(g)];
    sum.resize(2 * bins);
    for (int64_t c = begin; c < end && good[size_t(g)]; ++c)
      good[size_t(g)] = kernel(chunks[size_t(c)].x, chunks[size_t(c)].h, chunks[size_t(c)].size, grid, sum.data());
  });
  if (std::count(good.begin(), good.end(), 0)) return false;
  w_.assign(bins, 0), low_.assign(bins, 0);
  for (const auto& sum : sums)
    for (size_t b = 0; b < bins; ++b) w_[b] += sum[2 * b], low_[b] += sum[2 * b + 1];
  return true;
}

void Mass::sum_up(bool weighted) {
  const int bins = 2 * grid.half;
  s_.resize(size_t(bins)), w_sum_.resize(size_t(bins)), s_sum_.resize(size_t(bins));
  heaviest_ = 0;
  const double unit = std::ldexp(1.0, -grid.shift), scale = double(1 << grid.drop);
  const double rest = (scale - 1) / 2, last = double(1 << grid.shift) - 1; // of what the sums leave out: the middle
  double w_sum = 0, s_sum = 0;
  for (int bin = 0; bin < bins; ++bin) {
    const size_t b = size_t(bin);
    const double w = w_[b];
    s_[b] = 0, w_sum_[b] = w_sum, s_sum_[b] = s_sum;
    if (w == 0) continue;
    const double left = edge(bin), right = edge(bin + 1), width = right - left;
    double s = low_[b];
    if (!weighted) { // below the center keys are complemented: low bits l stand for 2^shift - 1 - l
      const double keys = s * scale + w * rest;
      s = bin < grid.half ? w * right - (w * last - keys) * (width * unit) : w * left + keys * (width * unit);
    }
    s_[b] = s;
    w_sum += w, s_sum += s;
    heaviest_ = std::max(heaviest_, (weighted ? w : w - 1) * width * width); // a single value hides nothing
  }
  total_ = {w_sum, s_sum};
  if (weighted) low_.clear();
  known_.assign(w_.size(), 0);
}

} // namespace lc::cpu::kmeans
