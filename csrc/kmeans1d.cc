// How a problem is solved:
//   1. Segments. At most 4096 distinct values: one segment each. Otherwise one pass over the data makes a histogram of
//      counts and sums on a grid that is linear in the bulk and logarithmic in the tails; each bin is a segment.
//   2. Start. Warm: the given codebook. Cold: the optimal partition of the segments. A segment so wide and heavy that
//      its inside matters (a spike, or an outlier bin) is expanded first: its elements are collected and sorted.
//   3. Lloyd on prefix sums over the segments, O(k log m) an iteration. Inside a segment that holds a boundary the
//      mass is taken as uniform at first; when the boundaries stand, those segments are expanded, and Lloyd goes on
//      with exact sums until nothing moves.
//   4. One more pass assigns the codes.
// Everything is in t = x - center, in double, so that a large common offset costs no accuracy.
#include "kmeans1d.h"

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

#include "assign.h"
#include "error.h"
#include "parallel.h"

namespace lc::cpu {
namespace {

constexpr int64_t kChunk = 1 << 16;
constexpr int kMaxDistinct = 4096;
constexpr int kMaxAtoms = 2048;   // atoms of a partition of histogram bins
constexpr int kSubAtoms = 1024;   // atoms of one expanded segment
constexpr int kMaxHalf = 6144;    // bins on either side: the table stays in the L2 cache
constexpr int kMaxExpansions = 8; // passes over the data to expand segments
constexpr int kMaxRounds = 3;     // of expanding what is heavy, in a cold start
constexpr double kNegligible = 1e-4;

uint32_t bits_of(float x) {
  uint32_t b;
  std::memcpy(&b, &x, sizeof b);
  return b;
}

float float_of(uint32_t b) {
  float x;
  std::memcpy(&x, &b, sizeof x);
  return x;
}

bool is_finite(float x) { return (bits_of(x) & 0x7f800000) != 0x7f800000; }

// The bin of one value, exactly as the kernels compute it.
int bin_of(float x, Kmeans1dGrid grid) {
  const float t = x - grid.center, a = std::fabs(t) + grid.base;
  int32_t key = int32_t(bits_of(a) - bits_of(grid.base));
  if (t < 0) key = ~key;
  return (key >> grid.shift) + grid.half;
}

Kmeans1dGrid make_grid(double center, double scale, double reach) {
  Kmeans1dGrid grid{};
  grid.center = float(center);
  // Between the smallest normal float and one that FLT_MAX absorbs in rounding.
  grid.base = std::ldexp(1.0f, std::clamp(scale > 0 ? std::ilogb(scale) : -126, -126, 100));
  const double top = std::min(reach + double(grid.base), double(FLT_MAX));
  const uint32_t keys = bits_of(float(top)) - bits_of(grid.base);
  // One bin to spare, since the kernels round x - center, and the sum with base, to float; but none for infinity.
  while (int64_t(keys >> grid.shift) + 2 > kMaxHalf) ++grid.shift;
  grid.half = int32_t(std::min((keys >> grid.shift) + 2, (0x7f800000u - bits_of(grid.base)) >> grid.shift));
  return grid;
}

// The grid that a sample of the data suggests, with room for values twice as far out as the sample's.
Kmeans1dGrid sampled_grid(const float* x, int64_t n) {
  constexpr int64_t kLine = 16, kLines = 128;
  std::vector<float> sample;
  for (int64_t line = 0; line < kLines; ++line)
    for (int64_t i = 0; i < kLine; ++i) {
      const float v = x[line * (n - kLine) / (kLines - 1) + i];
      if (is_finite(v)) sample.push_back(v);
    }
  if (sample.empty()) return make_grid(0, 1, 1);
  const auto median = [](std::vector<float>& v) {
    std::nth_element(v.begin(), v.begin() + std::ptrdiff_t(v.size() / 2), v.end());
    return double(v[v.size() / 2]);
  };
  const double center = median(sample);
  std::vector<float> distance;
  double reach = 0;
  for (float v : sample) {
    const double d = std::fabs(double(v) - center);
    reach = std::max(reach, d);
    if (d > 0 && d <= double(FLT_MAX)) distance.push_back(float(d));
  }
  return make_grid(center, distance.empty() ? 0 : median(distance), 2 * reach);
}

struct Element {
  double t, h;
};

struct Segment {
  double w, s;          // sums of h and of h t
  double low, high;     // of t
  int bin;              // of the grid, or -1: a single distinct value
  int64_t elements = 0; // expanded: so many of them, sorted, ...
  int64_t first = 0;    // ... from here in the pool, where prefix sums have one entry more
};

class Solver {
public:
  Solver(const Kmeans1dProblem& problem, int k, int max_iter) : p_(problem), k_(k), left_(max_iter) {}

  Kmeans1dStatus solve(bool warm) {
    if (p_.h) {
      const auto range = LC_DISPATCH(kmeans1d_range)(p_.h, p_.n);
      if (!range.finite || range.low < 0 || range.high == 0) return Kmeans1dStatus::bad_weights;
    }
    if (distinct_segments()) {
      if (!finite_) return Kmeans1dStatus::not_finite;
      if (int(segments_.size()) <= k_) { // a codeword for each value: nothing to solve, and no rounding
        std::vector<double> values;
        for (const Segment& segment : segments_) values.push_back(segment.low);
        write(values);
        return Kmeans1dStatus::ok;
      }
    } else if (!histogram_segments()) {
      return Kmeans1dStatus::not_finite;
    }
    index_segments();

    if (!warm) {
      write(descend(cold_start(), {}));
      return Kmeans1dStatus::ok;
    }
    std::vector<double> given;
    for (int c = 0; c < k_; ++c) given.push_back(double(p_.codebook[c]) - center_);
    std::vector<double> codebook = descend(given, /*include=*/given);
    if (gain(codebook) < gain(given)) codebook = descend(given, given); // the segments are exact by now
    if (has_empty_cell(codebook)) {
      const std::vector<double> fresh = descend(cold_start(), {});
      if (gain(fresh) > gain(codebook)) codebook = fresh;
    }
    // Never worse than the start, also after rounding to float: where hardly anything is gained, the start stays.
    const std::vector<float> start(p_.codebook, p_.codebook + k_);
    write(codebook);
    std::vector<double> reached;
    for (int c = 0; c < k_; ++c) reached.push_back(double(p_.codebook[c]) - center_);
    const bool moved = !std::equal(start.begin(), start.end(), p_.codebook);
    if (moved && !(gain(reached) - gain(given) > 1e-8 * *p_.distortion)) write(start);
    return Kmeans1dStatus::ok;
  }

private:
  // ---- segments --------------------------------------------------------------------------------------------

  // One segment per distinct value, if there are few. A small open-addressing table stops at the first too many.
  bool distinct_segments() {
    constexpr uint32_t kEmpty = 0xffffffff; // the bits of a NaN
    const uint32_t size = std::bit_ceil(uint32_t(4 * std::min<int64_t>(p_.n, kMaxDistinct)));
    struct Slot {
      uint32_t bits;
      double w;
    };
    std::vector<Slot> slots(size, Slot{kEmpty, 0});
    int used = 0;
    const auto add = [&](float v, double h) {
      if (!is_finite(v)) return finite_ = false;
      const uint32_t b = bits_of(v + 0.0f); // -0 and +0 are one value
      uint32_t slot = b * 2654435761u;
      slot = (slot ^ (slot >> 15)) * 2246822519u;
      slot = (slot ^ (slot >> 13)) & (size - 1);
      while (slots[slot].bits != b && slots[slot].bits != kEmpty) slot = (slot + 1) & (size - 1);
      if (slots[slot].bits == kEmpty && ++used > kMaxDistinct) return false;
      slots[slot].bits = b;
      slots[slot].w += h;
      return true;
    };
    if (p_.n > 4 * kMaxDistinct) { // a look at the whole range first: weights often start with a run of equal values
      const int64_t stride = p_.n / (2 * kMaxDistinct);
      for (int64_t i = 0; i < p_.n; i += stride)
        if (!add(p_.x[i], 0)) return !finite_;
    }
    for (int64_t i = 0; i < p_.n; ++i)
      if (!add(p_.x[i], p_.h ? double(p_.h[i]) : 1.0)) return !finite_;
    std::vector<std::pair<float, double>> values;
    for (const Slot& slot : slots)
      if (slot.bits != kEmpty && slot.w > 0) values.emplace_back(float_of(slot.bits), slot.w);
    std::sort(values.begin(), values.end());
    center_ = int(values.size()) <= k_ ? 0 : double(values[values.size() / 2].first);
    for (const auto& [value, w] : values) {
      const double t = double(value) - center_;
      segments_.push_back({w, w * t, t, t, -1});
    }
    return true;
  }

  bool histogram_segments() {
    grid_ = sampled_grid(p_.x, p_.n);
    if (!fill_histogram()) { // something lies beyond the sample's reach, or is not finite
      std::vector<Kmeans1dRange> ranges(size_t(chunk_count(p_.n, kChunk)));
      const auto kernel = LC_DISPATCH(kmeans1d_range);
      parallel_for(p_.n, kChunk, [&](int64_t c, int64_t begin, int64_t end) {
        ranges[size_t(c)] = kernel(p_.x + begin, end - begin);
      });
      double low = DBL_MAX, high = -DBL_MAX;
      for (const Kmeans1dRange& r : ranges) {
        if (!r.finite) return false;
        low = std::min(low, double(r.low)), high = std::max(high, double(r.high));
      }
      // Far from zero on both sides, x - center could overflow: center on zero then.
      const double center = high - low < double(FLT_MAX) / 4 ? double(grid_.center) : 0;
      const double reach = std::max(high - center, center - low);
      const double scale = double(grid_.base) > FLT_MIN ? double(grid_.base) : reach / 64;
      grid_ = make_grid(center, scale, reach);
      LC_CHECK(fill_histogram());
    }
    return true;
  }

  // The key magnitude `key` as a distance from the center.
  double distance(int64_t key) const {
    const int64_t b = int64_t(bits_of(grid_.base)) + key;
    return std::ldexp(double((b & 0x7fffff) | 0x800000), int(b >> 23) - 150) - double(grid_.base);
  }

  struct Bin {
    bool below;       // the center
    double near, far; // its ends, as distances from the center
  };

  Bin bin_at(size_t bin) const {
    const int64_t j = int64_t(bin) - grid_.half, magnitude = j < 0 ? -j - 1 : j;
    return {j < 0, distance(magnitude << grid_.shift), distance((magnitude + 1) << grid_.shift)};
  }

  bool fill_histogram() {
    const size_t bins = 2 * size_t(grid_.half);
    center_ = double(grid_.center);
    std::vector<double> w(bins), s(bins);
    if (!(p_.h ? weighted_sums(w, s) : exact_sums(w, s))) return false;
    for (size_t bin = 0; bin < bins; ++bin) {
      if (w[bin] == 0) continue;
      const Bin b = bin_at(bin);
      segments_.push_back({w[bin], s[bin], b.below ? -b.far : b.near, b.below ? -b.near : b.far, int(bin)});
    }
    return true;
  }

  // Counts and sums are integers, so it does not matter which thread adds what.
  bool exact_sums(std::vector<double>& w, std::vector<double>& s) {
    constexpr int64_t kFlush = 1 << 20; // low bits < 2^19, so their sum stays below 2^39 < 2^40
    const auto kernel = LC_DISPATCH(kmeans1d_histogram);
    const size_t bins = w.size();
    const int64_t chunks = chunk_count(p_.n, kChunk);
    const int64_t groups = std::min<int64_t>(chunks, omp_in_parallel() ? 1 : omp_get_max_threads());
    std::vector<std::vector<uint64_t>> counts(static_cast<size_t>(groups)), lows(static_cast<size_t>(groups));
    std::vector<uint8_t> on_grid(size_t(groups), 1);
    parallel_for(groups, 1, [&](int64_t g, int64_t, int64_t) {
      auto &count = counts[size_t(g)], &low = lows[size_t(g)];
      count.resize(bins), low.resize(bins);
      std::vector<uint64_t> table(bins);
      int64_t pending = 0;
      const auto flush = [&] {
        for (size_t b = 0; b < bins; ++b) {
          count[b] += table[b] >> 40;
          low[b] += table[b] & ((uint64_t(1) << 40) - 1);
          table[b] = 0;
        }
        pending = 0;
      };
      for (int64_t c = g; c < chunks && on_grid[size_t(g)]; c += groups) {
        const int64_t begin = c * kChunk, size = std::min(kChunk, p_.n - begin);
        on_grid[size_t(g)] = kernel(p_.x + begin, size, grid_, table.data());
        if ((pending += size) > kFlush - kChunk) flush();
      }
      flush();
    });
    if (std::count(on_grid.begin(), on_grid.end(), 0)) return false;
    for (size_t b = 0; b < bins; ++b) {
      int64_t count = 0, low = 0;
      for (size_t g = 0; g < counts.size(); ++g) count += int64_t(counts[g][b]), low += int64_t(lows[g][b]);
      if (!count) continue;
      const Bin bin = bin_at(b);
      const double step = (bin.far - bin.near) / double(int64_t(1) << grid_.shift); // between neighbouring keys
      // Below the center keys are complemented: low bits l stand for 2^shift - 1 - l steps.
      if (bin.below) low = count * ((int64_t(1) << grid_.shift) - 1) - low;
      const double sum = double(count) * bin.near + double(low) * step;
      w[b] = double(count), s[b] = bin.below ? -sum : sum;
    }
    return true;
  }

  // Floating-point sums: a fixed grouping, combined in order.
  bool weighted_sums(std::vector<double>& w, std::vector<double>& s) {
    const auto kernel = LC_DISPATCH(kmeans1d_histogram_weighted);
    const size_t bins = w.size();
    const int64_t group_size = std::max<int64_t>(kChunk, (p_.n + 15) / 16), groups = chunk_count(p_.n, group_size);
    std::vector<std::vector<double>> sums(static_cast<size_t>(groups));
    std::vector<uint8_t> on_grid(static_cast<size_t>(groups));
    parallel_for(p_.n, group_size, [&](int64_t g, int64_t begin, int64_t end) {
      auto& sum = sums[size_t(g)];
      sum.resize(2 * bins);
      on_grid[size_t(g)] = kernel(p_.x + begin, p_.h + begin, end - begin, grid_, sum.data(), sum.data() + bins);
    });
    if (std::count(on_grid.begin(), on_grid.end(), 0)) return false;
    for (const auto& sum : sums)
      for (size_t b = 0; b < bins; ++b) w[b] += sum[b], s[b] += sum[bins + b];
    return true;
  }

  void index_segments() {
    w_.assign(1, 0), s_.assign(1, 0), low_.clear();
    for (const Segment& segment : segments_) {
      w_.push_back(w_.back() + segment.w);
      s_.push_back(s_.back() + segment.s);
      low_.push_back(segment.low);
    }
  }

  // Collect and sort the elements of these segments: one pass over the data.
  void expand(std::vector<int> which) {
    std::sort(which.begin(), which.end());
    which.erase(std::unique(which.begin(), which.end()), which.end());
    std::vector<uint8_t> wanted(2 * size_t(grid_.half));
    for (int j : which) wanted[size_t(segments_[size_t(j)].bin)] = 1;
    struct Found {
      int bin;
      Element element;
    };
    std::vector<std::vector<Found>> found(size_t(chunk_count(p_.n, kChunk)));
    const auto kernel = LC_DISPATCH(kmeans1d_gather);
    parallel_for(p_.n, kChunk, [&](int64_t c, int64_t begin, int64_t end) {
      const auto at = std::make_unique_for_overwrite<uint32_t[]>(size_t(end - begin));
      const int64_t count = kernel(p_.x + begin, end - begin, grid_, wanted.data(), at.get());
      for (int64_t i = 0; i < count; ++i) {
        const int64_t e = begin + at[size_t(i)];
        found[size_t(c)].push_back({bin_of(p_.x[e], grid_), {double(p_.x[e]) - center_, p_.h ? double(p_.h[e]) : 1.0}});
      }
    });
    std::vector<std::vector<Element>> elements(which.size());
    std::vector<int> slot(wanted.size(), -1);
    for (size_t i = 0; i < which.size(); ++i) slot[size_t(segments_[size_t(which[i])].bin)] = int(i);
    for (const auto& chunk : found)
      for (const Found& f : chunk) elements[size_t(slot[size_t(f.bin)])].push_back(f.element);
    parallel_for(int64_t(which.size()), 1, [&](int64_t i, int64_t, int64_t) {
      std::sort(elements[size_t(i)].begin(), elements[size_t(i)].end(),
                [](const Element& a, const Element& b) { return a.t < b.t; });
    });
    for (size_t i = 0; i < which.size(); ++i) {
      Segment& segment = segments_[size_t(which[i])];
      segment.first = int64_t(pool_t_.size());
      segment.elements = int64_t(elements[i].size());
      segment.low = elements[i].front().t, segment.high = elements[i].back().t;
      double w = 0, s = 0;
      for (const Element& e : elements[i]) {
        pool_t_.push_back(e.t), pool_w_.push_back(w), pool_s_.push_back(s);
        w += e.h, s += e.h * e.t;
      }
      pool_t_.push_back(segment.high), pool_w_.push_back(w), pool_s_.push_back(s);
      segment.w = w, segment.s = s;
    }
    index_segments();
  }

  bool is_coarse(const Segment& segment) const { return segment.bin >= 0 && segment.elements == 0; }

  // ---- Lloyd -----------------------------------------------------------------------------------------------

  struct Cells {
    std::vector<double> w, s;
    std::vector<int> coarse; // segments that hold a boundary and are not expanded
  };

  // Weight and sum of everything at or below t: a tie goes to the lower cell.
  std::pair<double, double> below(double t, std::vector<int>& coarse) const {
    const auto j = size_t(std::upper_bound(low_.begin(), low_.end(), t) - low_.begin());
    if (j == 0) return {0, 0};
    const Segment& segment = segments_[j - 1];
    double w = w_[j - 1], s = s_[j - 1];
    if (t >= segment.high) return {w + segment.w, s + segment.s};
    if (segment.elements) {
      const double* first = pool_t_.data() + segment.first;
      const auto i = size_t(segment.first + (std::upper_bound(first, first + segment.elements, t) - first));
      return {w + pool_w_[i], s + pool_s_[i]};
    }
    if (is_coarse(segment)) coarse.push_back(int(j - 1));
    // Uniform mass, on the widest interval inside the segment that has the right mean.
    const double mean = segment.s / segment.w;
    const double reach = std::max(std::min(mean - segment.low, segment.high - mean), 1e-300);
    const double part = std::clamp((t - (mean - reach)) / (2 * reach), 0.0, 1.0);
    return {w + part * segment.w, s + part * segment.w * (mean - reach + part * reach)};
  }

  Cells cells(const std::vector<double>& codebook) const {
    Cells out{std::vector<double>(codebook.size()), std::vector<double>(codebook.size()), {}};
    double w = 0, s = 0;
    for (size_t c = 0; c < codebook.size(); ++c) {
      const auto [w_end, s_end] = c + 1 < codebook.size() ? below((codebook[c] + codebook[c + 1]) / 2, out.coarse)
                                                          : std::pair{w_.back(), s_.back()};
      out.w[c] = w_end - w, out.s[c] = s_end - s;
      w = w_end, s = s_end;
    }
    return out;
  }

  // Distortion, up to sign and a constant: the higher the better.
  double gain(const std::vector<double>& codebook) const {
    const Cells parts = cells(codebook);
    double total = 0;
    for (size_t c = 0; c < codebook.size(); ++c) total += codebook[c] * (2 * parts.s[c] - codebook[c] * parts.w[c]);
    return total;
  }

  bool has_empty_cell(const std::vector<double>& codebook) const {
    const Cells parts = cells(codebook);
    return std::count(parts.w.begin(), parts.w.end(), 0.0) > 0;
  }

  // Lloyd to the end, expanding what the boundaries rest on. `include`: a codebook whose boundaries are made exact too.
  std::vector<double> descend(std::vector<double> codebook, const std::vector<double>& include) {
    for (int expansions = 0;; ++expansions) {
      Cells parts = cells(codebook);
      for (; left_ > 0; --left_, ++iterations_) {
        double moved = 0, fine = 0; // fine: a move that no coarse segment would notice
        const std::vector<double> codebook_before = codebook;
        for (size_t c = 0; c < codebook.size(); ++c) {
          if (parts.w[c] <= 0) continue; // an empty cell keeps its codeword
          // A cell that weighs next to nothing beside the others has a mean of rounding errors: keep it in its cell.
          const double left = c ? (codebook_before[c - 1] + codebook_before[c]) / 2 : -DBL_MAX;
          const double right = c + 1 < codebook.size() ? (codebook_before[c] + codebook_before[c + 1]) / 2 : DBL_MAX;
          const double mean = std::clamp(parts.s[c] / parts.w[c], left, right);
          moved = std::max(moved, std::fabs(mean - codebook[c]));
          codebook[c] = mean;
        }
        if (!parts.coarse.empty()) fine = DBL_MAX;
        for (int j : parts.coarse) fine = std::min(fine, 1e-3 * (segments_[size_t(j)].high - segments_[size_t(j)].low));
        parts = cells(codebook);
        if (moved <= fine) break;
      }
      std::vector<int> coarse = parts.coarse;
      if (!include.empty()) {
        const std::vector<int> more = cells(include).coarse;
        coarse.insert(coarse.end(), more.begin(), more.end());
      }
      if (coarse.empty() || expansions == kMaxExpansions) return codebook;
      expand(coarse);
    }
  }

  // ---- cold start ------------------------------------------------------------------------------------------

  std::vector<double> cold_start() {
    for (int round = 0;; ++round) {
      std::vector<double> codebook = partition();
      if (round == kMaxRounds) return codebook;
      // What a segment can hide is at most the distortion of its mass at its two ends.
      double distortion = 0;
      size_t c = 0;
      for (const Segment& segment : segments_) {
        const double mean = segment.s / segment.w;
        while (c + 1 < codebook.size() && (codebook[c] + codebook[c + 1]) / 2 < mean) ++c;
        distortion += segment.w * (mean - codebook[c]) * (mean - codebook[c]);
      }
      std::vector<int> heavy;
      for (size_t j = 0; j < segments_.size(); ++j) {
        const double width = segments_[j].high - segments_[j].low;
        if (is_coarse(segments_[j]) && segments_[j].w * width * width / 4 > kNegligible * distortion)
          heavy.push_back(int(j));
      }
      if (heavy.empty()) return codebook;
      expand(heavy);
    }
  }

  struct Atom {
    double w, s;
  };

  // The optimal partition of the segments, or of groups of them where there are too many.
  std::vector<double> partition() const {
    std::vector<Atom> atoms;
    for (const Segment& segment : segments_) {
      const int64_t parts = std::clamp<int64_t>(segment.elements, 1, kSubAtoms);
      if (parts == 1) atoms.push_back({segment.w, segment.s});
      for (int64_t part = 0; parts > 1 && part < parts; ++part) {
        const auto begin = size_t(segment.first + part * segment.elements / parts);
        const auto end = size_t(segment.first + (part + 1) * segment.elements / parts);
        if (pool_w_[end] > pool_w_[begin])
          atoms.push_back({pool_w_[end] - pool_w_[begin], pool_s_[end] - pool_s_[begin]});
      }
    }
    if (int(atoms.size()) > kMaxAtoms && segments_[0].bin >= 0) atoms = grouped(atoms);

    std::vector<double> w{0}, s{0};
    std::vector<size_t> first; // atom of each step of the prefix sums
    double w_sum = 0, s_sum = 0;
    for (size_t j = 0; j < atoms.size(); ++j) {
      w_sum += atoms[j].w, s_sum += atoms[j].s;
      if (first.size() < w.size()) first.push_back(j);
      if (w_sum == w.back()) continue; // too light to show beside the others: goes with the next one
      w.push_back(w_sum), s.push_back(s_sum);
    }
    s.back() = s_sum;
    first.resize(w.size() - 1), first.push_back(atoms.size());
    const int m = int(w.size()) - 1, k = std::min(k_, m);
    std::vector<double> scratch(2 * size_t(m + 1));
    const auto splits = std::make_unique_for_overwrite<int[]>(size_t(k) * size_t(m + 1));
    std::vector<int> ends(static_cast<size_t>(k));
    LC_DISPATCH(kmeans1d_partition)(w.data(), s.data(), m, k, scratch.data(), splits.get(), ends.data());
    std::vector<double> codebook;
    for (int c = 0, begin = 0; c < k; begin = ends[size_t(c++)]) {
      double cell_w = 0, cell_s = 0; // not as a difference of prefix sums, which would cancel
      for (size_t j = first[size_t(begin)]; j < first[size_t(ends[size_t(c)])]; ++j)
        cell_w += atoms[j].w, cell_s += atoms[j].s;
      codebook.push_back(cell_s / cell_w);
    }
    std::sort(codebook.begin(), codebook.end()); // rounding may have swapped two that are all but equal
    return codebook;
  }

  // Adjacent atoms merged into kMaxAtoms groups of about equal density^(1/3) measure, which is how an optimal quantizer
  // spends its codewords (Panter and Dite).
  static std::vector<Atom> grouped(const std::vector<Atom>& atoms) {
    std::vector<double> measure(atoms.size());
    double total = 0;
    const auto mean = [&](size_t j) { return atoms[j].s / atoms[j].w; };
    for (size_t j = 0; j < atoms.size(); ++j) {
      const size_t left = j ? j - 1 : j, right = std::min(j + 1, atoms.size() - 1);
      const double width = (mean(right) - mean(left)) / double(right - left);
      total += measure[j] = std::cbrt(atoms[j].w * width * width);
    }
    if (!(total > 0)) return atoms;
    // An outlier, or the two sides of a gap, would take most of the groups: cap them at one group each.
    for (int round = 0; round < 8; ++round) {
      const double cap = total / kMaxAtoms;
      total = 0;
      for (double& m : measure) total += m = std::min(m, cap);
    }
    std::vector<Atom> groups;
    double seen = 0;
    int64_t last = -1;
    for (size_t j = 0; j < atoms.size(); ++j) {
      const auto group = int64_t((seen + measure[j] / 2) / total * kMaxAtoms);
      if (group != last) groups.push_back({0, 0});
      last = group;
      groups.back().w += atoms[j].w, groups.back().s += atoms[j].s;
      seen += measure[j];
    }
    return groups;
  }

  // ---- result ----------------------------------------------------------------------------------------------

  // The codebook, in t, with its codes and distortion.
  void write(const std::vector<double>& codebook) const {
    std::vector<float> values;
    for (int c = 0; c < k_; ++c) values.push_back(float(codebook[std::min(size_t(c), codebook.size() - 1)] + center_));
    std::sort(values.begin(), values.end());
    write(values);
  }

  void write(const std::vector<float>& codebook) const {
    std::copy(codebook.begin(), codebook.end(), p_.codebook);
    float mids[256];
    midpoints(p_.codebook, k_, mids);
    assign(p_.x, p_.n, mids, k_, p_.codes);
    std::vector<double> parts(size_t(chunk_count(p_.n, kChunk)));
    const auto kernel = LC_DISPATCH(kmeans1d_distortion);
    parallel_for(p_.n, kChunk, [&](int64_t c, int64_t begin, int64_t end) {
      parts[size_t(c)] =
          kernel(p_.x + begin, p_.h ? p_.h + begin : nullptr, end - begin, p_.codes + begin, p_.codebook);
    });
    *p_.distortion = 0;
    for (double part : parts) *p_.distortion += part;
    *p_.iterations = iterations_;
  }

  const Kmeans1dProblem p_;
  const int k_;
  int left_;
  int64_t iterations_ = 0;
  bool finite_ = true;
  Kmeans1dGrid grid_{};
  double center_ = 0;
  std::vector<Segment> segments_;                // ascending and disjoint
  std::vector<double> w_, s_, low_;              // prefix sums over the segments; their lower ends
  std::vector<double> pool_t_, pool_w_, pool_s_; // elements of expanded segments, and prefix sums within each
};

} // namespace

void kmeans1d(const std::vector<Kmeans1dProblem>& batch, int k, bool warm, int max_iter,
              std::vector<Kmeans1dStatus>& status) {
  constexpr int64_t kLarge = 1 << 17; // large problems use all threads one after another, small ones a thread each
  status.assign(batch.size(), Kmeans1dStatus::ok);
  std::vector<size_t> small;
  for (size_t b = 0; b < batch.size(); ++b) {
    if (batch[b].n < kLarge)
      small.push_back(b);
    else
      status[b] = Solver(batch[b], k, max_iter).solve(warm);
  }
  parallel_for(int64_t(small.size()), 1, [&](int64_t i, int64_t, int64_t) {
    const size_t b = small[size_t(i)];
    status[b] = Solver(batch[b], k, max_iter).solve(warm);
  });
}

} // namespace lc::cpu
