// For a scale s let phi(s) = sum_i h_i max_l (2 x_i c_l - s c_l^2): the distortion at s is sum h x^2 - s phi(s). phi is
// a maximum of linear functions, hence convex, so between two scales it lies below its chord, and s * chord(s), a
// parabola, bounds what any scale between them can gain. And an assignment with A = sum h x q and B = sum h q^2, q the
// levels, gains A^2 / B at its own best scale A / B. So: branch and bound over s.
//
//   1. Where there are many values, on a histogram: the bins that hold a threshold s * (midpoint of two levels) leave
//      an interval for phi, narrow because only the bin's mean and ends are needed to bound it. What cannot be ruled
//      out is a narrow window of scales.
//   2. Only the values that change level within the window are collected; the others are in A and B for good.
//   3. Branch and bound on those, exactly; as the window shrinks, so does the collection.
//   4. One pass assigns the codes.
// Small problems, and those with many levels for few values, whose window holds too much, do 3 with all values.
#include "quantize_scaled.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>

#include "assign.h"
#include "parallel.h"

namespace lc::cpu {
namespace {

constexpr int64_t kChunk = 1 << 16;
constexpr int64_t kSmall = 1 << 15;   // up to so many values, no histogram
constexpr double kTolerance = 1e-8;   // of the distortion
constexpr double kRounding = 1e-14;   // of the gain
constexpr int kMaxEvaluations = 1000; // far more than measured (10 to 40)
using Room = std::array<float, 260>;  // thresholds, and what the kernels want around them

struct Sums {
  double a = 0, b = 0; // sum h x q, sum h q^2
};

// The largest gain of an assignment seen, and its scale.
struct Best {
  double gain = 0, scale = 0;
  Sums sums{0, 1};
  void consider(Sums candidate) {
    if (!(candidate.a > 0 && candidate.b > 0)) return;
    if (!(candidate.a * candidate.a * sums.b > sums.a * sums.a * candidate.b))
      return; // no division: it is called often
    sums = candidate;
    scale = sums.a / sums.b, gain = sums.a * scale;
  }
};

struct Point {
  double s, phi;   // phi, or an upper bound of it
  Sums sums;       // of an assignment at or near s
  double most = 0; // that a scale from here to the next point can gain
};

// The most that a scale between two points can gain.
double bound(const Point& p, const Point& q) {
  const double slope = (q.phi - p.phi) / (q.s - p.s), at_zero = p.phi - slope * p.s; // s * (at_zero + slope * s)
  double s = slope < 0 ? -at_zero / (2 * slope) : q.s;
  s = std::clamp(s, p.s, q.s);
  return s * (at_zero + slope * s);
}

/// Branch and bound between the first and the last of `points`, which end as those around the scales that are left.
/// evaluate(s) gives the Point at s; shrink(low, high) hears of the window that is left, and ends the search by
/// returning true. No interval narrower than `finest` of its scale is split.
template <class Evaluate, class Shrink> void maximise(std::vector<Point>& points, double energy, double finest,
                                                      Best& best, const Evaluate& evaluate, const Shrink& shrink) {
  for (size_t i = 0; i + 1 < points.size(); ++i) points[i].most = bound(points[i], points[i + 1]);
  for (int evaluations = 0; evaluations < kMaxEvaluations;) {
    const double enough = best.gain + kTolerance * std::max(energy - best.gain, 0.0) + kRounding * best.gain;
    std::ptrdiff_t first = -1, last = -1, split = -1; // intervals, by the point they start at
    double widest = 0;
    for (std::ptrdiff_t i = 0; i + 1 < std::ptrdiff_t(points.size()); ++i) {
      const Point &p = points[size_t(i)], &q = points[size_t(i) + 1];
      if (p.most <= enough) continue;
      if (first < 0) first = i;
      last = i;
      if (q.s - p.s > widest && q.s - p.s > finest * q.s) widest = q.s - p.s, split = i;
    }
    if (first < 0) { // nothing is left
      points.clear();
      return;
    }
    points.erase(points.begin() + last + 2, points.end());
    points.erase(points.begin(), points.begin() + first);
    if (split < 0) return;
    split -= first;
    if (shrink(points.front().s, points.back().s)) return;
    Point &p = points[size_t(split)], &q = points[size_t(split) + 1];
    // In turns, where the best assignment seen wants to go (alone it would get there in ever smaller steps), and where
    // the tangents of both ends meet: if phi is no higher there, nothing lies between.
    double s = best.scale;
    if (evaluations % 2 || !(s > p.s && s < q.s))
      s = p.sums.b > q.sums.b ? 2 * (p.sums.a - q.sums.a) / (p.sums.b - q.sums.b) : (p.s + q.s) / 2;
    if (finest > 0) s = std::clamp(s, p.s + (q.s - p.s) / 16, q.s - (q.s - p.s) / 16);
    if (!(s > p.s && s < q.s)) {
      p.most = 0;
      continue;
    }
    Point middle = evaluate(s);
    ++evaluations;
    best.consider(middle.sums);
    middle.most = bound(middle, q);
    p.most = bound(p, middle);
    points.insert(points.begin() + split + 1, middle);
  }
}

// The levels, and what the kernels need to search them at any scale. They are divided by a power of two that brings the
// largest near 1, so that no product of sums overflows or underflows: scales here are larger by `unit`.
class Levels {
public:
  Levels(const float* given, int k) : k(k) {
    const float largest = std::max(std::fabs(given[0]), std::fabs(given[k - 1]));
    if (largest > 0) unit = std::ldexp(1.0, std::ilogb(largest));
    for (int j = 0; j < k; ++j) levels_[size_t(j)] = float(double(given[j]) / unit);
    for (int j = 0; j + 1 < k; ++j) {
      mids[size_t(j)] = ((*this)[j] + (*this)[j + 1]) / 2;
      zero += mids[size_t(j)] < 0;
      const double m = std::fabs(mids[size_t(j)]);
      if (m > 0 && (smallest_mid == 0 || m < smallest_mid)) smallest_mid = m;
    }
    step_ = k > 2 ? (*this)[1] - (*this)[0] : 0;
    for (int j = 0; j < k; ++j)
      if (levels_[size_t(j)] != float((*this)[0] + j * step_)) step_ = 0;
    if (k <= 16) return;
    low_ = mids[0];
    per_unit_ = mids[size_t(k - 2)] > low_ ? kQuantizeScaledCells / (mids[size_t(k - 2)] - low_) : 0;
    int code = 0;
    for (int cell = 0; cell < kQuantizeScaledCells; ++cell) {
      while (code + 1 < k && (mids[size_t(code)] - low_) * per_unit_ < cell) ++code;
      first_[size_t(cell)] = uint8_t(code);
    }
  }

  double operator[](int j) const { return double(levels_[size_t(j)]); }

  // The book at the scale s, whose thresholds are to be kept in `room`.
  QuantizeScaledBook at(double s, Room& room) const {
    for (int j = 0; j + 1 < k; ++j) room[size_t(j) + 1] = float(s * mids[size_t(j)]);
    return book(s, room, levels_.data());
  }

  // The same for thresholds (from room[1] on) and levels of its own, those of about the scale s.
  QuantizeScaledBook book(double s, Room& room, const float* levels) const {
    constexpr float kInf = std::numeric_limits<float>::infinity();
    room[0] = -kInf, room[size_t(k)] = kInf;
    for (size_t j = size_t(k); j < 17; ++j) room[j] = kInf;
    const auto per = [&](double cells) { return float(std::clamp(cells / std::max(s, 1e-300), 0.0, double(FLT_MAX))); };
    QuantizeScaledBook book{
        room.data() + 1, levels, k, per(per_unit_), float(-low_ * per_unit_), first_.data(), 0, 0, 0, 0};
    if (step_ > 0 && (s == 0 || 1 / (step_ * s) < double(FLT_MAX))) {
      book.per_step = per(1 / step_), book.from = float(0.5 - (*this)[0] / step_);
      book.lowest = levels_[0], book.step = float(step_);
    }
    return book;
  }

  double unit = 1;
  int k, zero = 0;                // zero: the level of x = 0
  double smallest_mid = 0;        // of those |mids| that are not zero, if any
  std::array<double, 256> mids{}; // of neighbours

private:
  std::array<float, 256> levels_{};
  std::array<uint8_t, kQuantizeScaledCells + 3> first_{};
  double low_ = 0, per_unit_ = 0, step_ = 0;
};

// Values under way: the caller's, or a collection of our own.
struct Values {
  const float *x, *h;
  int64_t n;
};

// Values that were kept, with their codes at the two ends of a window of scales, if they came from a filter.
struct Collection {
  std::vector<float> x, h;
  std::vector<uint8_t> code_a, code_b;
  Values values(bool weighted) const { return {x.data(), weighted ? h.data() : nullptr, int64_t(x.size())}; }
  void resize(int64_t n, bool weighted) {
    x.resize(size_t(n)), code_a.resize(size_t(n)), code_b.resize(size_t(n));
    if (weighted) h.resize(size_t(n));
  }
  void append(const Collection& other, int64_t n, bool weighted) {
    x.insert(x.end(), other.x.begin(), other.x.begin() + n);
    code_a.insert(code_a.end(), other.code_a.begin(), other.code_a.begin() + n);
    code_b.insert(code_b.end(), other.code_b.begin(), other.code_b.begin() + n);
    if (weighted) h.insert(h.end(), other.h.begin(), other.h.begin() + n);
  }
};

struct Event { // a value changes its level
  double s;
  Sums drop; // of the sums, as s rises
};

// Memory that problems share, one after the other.
struct Scratch {
  std::vector<Point> points;
  std::vector<Values> parts;
  Collection kept, next;
  std::vector<Event> events;
};

// ---- the exact search over values --------------------------------------------------------------------------------

Sums sums_at(const std::vector<Values>& parts, const Levels& levels, double s) {
  Room room;
  const QuantizeScaledBook book = levels.at(s, room);
  const auto kernel = LC_DISPATCH(quantize_scaled_sums);
  Sums total;
  const auto run = [&](const Values& v, int64_t begin, int64_t end) {
    double out[2];
    kernel(v.x + begin, v.h ? v.h + begin : nullptr, end - begin, book, out);
    return Sums{out[0], out[1]};
  };
  for (const Values& v : parts) {
    if (v.n <= kChunk) {
      const Sums sums = run(v, 0, v.n);
      total.a += sums.a, total.b += sums.b;
      continue;
    }
    std::vector<Sums> chunk(size_t(chunk_count(v.n, kChunk)));
    parallel_for(v.n, kChunk, [&](int64_t c, int64_t begin, int64_t end) { chunk[size_t(c)] = run(v, begin, end); });
    for (const Sums& sums : chunk) total.a += sums.a, total.b += sums.b;
  }
  return total;
}

// Keeps the values that change their level between the scales a and b, and adds the sums of the others to `fixed`.
void filter(const std::vector<Values>& parts, const Levels& levels, double a, double b, Collection& kept, Sums& fixed) {
  Room room_a, room_b;
  const QuantizeScaledBook book_a = levels.at(a, room_a), book_b = levels.at(b, room_b);
  const auto kernel = LC_DISPATCH(quantize_scaled_filter);
  const auto run = [&](const Values& v, int64_t begin, int64_t end, Collection& mine, double* sums) {
    mine.resize(end - begin, v.h != nullptr);
    return kernel(v.x + begin, v.h ? v.h + begin : nullptr, end - begin, book_a, book_b, mine.x.data(), mine.h.data(),
                  mine.code_a.data(), mine.code_b.data(), sums);
  };
  if (parts.size() == 1 && parts[0].n <= kChunk) {
    double sums[2] = {};
    kept.resize(run(parts[0], 0, parts[0].n, kept, sums), parts[0].h != nullptr);
    fixed.a += sums[0], fixed.b += sums[1];
    return;
  }
  kept.resize(0, true);
  for (const Values& v : parts) {
    std::vector<Collection> chunk(size_t(chunk_count(v.n, kChunk)));
    std::vector<std::array<double, 2>> sums(chunk.size());
    parallel_for(v.n, kChunk, [&](int64_t c, int64_t begin, int64_t end) {
      thread_local Collection mine;
      sums[size_t(c)] = {};
      const int64_t n = run(v, begin, end, mine, sums[size_t(c)].data());
      chunk[size_t(c)].append(mine, n, v.h != nullptr);
    });
    for (size_t c = 0; c < chunk.size(); ++c) {
      kept.append(chunk[c], int64_t(chunk[c].x.size()), v.h != nullptr);
      fixed.a += sums[c][0], fixed.b += sums[c][1];
    }
  }
}

// All assignments between the two scales of a filter, one after the other, from `sums`, that at the lower one.
void sweep(const Collection& kept, const Levels& levels, bool weighted, Sums sums, std::vector<Event>& events,
           Best& best) {
  events.clear();
  for (size_t i = 0; i < kept.x.size(); ++i) {
    const double x = double(kept.x[i]), h = weighted ? double(kept.h[i]) : 1;
    const auto [low, high] = std::minmax(kept.code_a[i], kept.code_b[i]);
    for (int j = low; j < high; ++j) {
      const double jump = levels[j + 1] - levels[j], mid = levels.mids[size_t(j)];
      events.push_back({x / mid, {h * std::fabs(x) * jump, 2 * h * jump * std::fabs(mid)}});
    }
  }
  std::sort(events.begin(), events.end(), [](const Event& e, const Event& f) { return e.s < f.s; });
  best.consider(sums);
  for (const Event& event : events) {
    sums.a -= event.drop.a, sums.b -= event.drop.b;
    best.consider(sums);
  }
}

// The best scale between `low` and `high`; what `fixed` holds does not change there.
void search_values(const std::vector<Values>& values, const Levels& levels, Sums fixed, double low, double high,
                   double energy, Best& best) {
  constexpr int64_t kMany = 512; // values that are worth filtering
  constexpr int64_t kFew = 48;   // events that are worth sweeping
  thread_local Scratch scratch;
  Scratch& room = scratch;
  const bool weighted = values[0].h != nullptr;
  room.parts = values;
  int64_t n = 0;
  for (const Values& v : values) n += v.n;
  const auto evaluate = [&](double s) {
    Sums sums = sums_at(room.parts, levels, s);
    sums.a += fixed.a, sums.b += fixed.b;
    return Point{s, 2 * sums.a - s * sums.b, sums};
  };
  room.points.clear();
  for (const double s : {low, high}) {
    room.points.push_back(evaluate(s));
    best.consider(room.points.back().sums);
  }
  double window = high - low;
  maximise(room.points, energy, 0, best, evaluate, [&](double a, double b) {
    if (b - a > window / 4 || (n < kMany && b > 1.2 * a)) return false;
    window = b - a;
    Sums others = fixed;
    filter(room.parts, levels, a, b, room.next, others);
    int64_t events = 0;
    for (size_t i = 0; i < room.next.x.size(); ++i)
      events += std::abs(int(room.next.code_a[i]) - int(room.next.code_b[i]));
    if (events <= kFew) {
      sweep(room.next, levels, weighted, room.points.front().sums, room.events, best);
      return true;
    }
    if (n >= kMany) {
      std::swap(room.kept, room.next);
      room.parts = {room.kept.values(weighted)};
      n = room.parts[0].n, fixed = others;
    }
    return false;
  });
}

// ---- the histogram -------------------------------------------------------------------------------------------------

uint32_t bits_of(float x) { return std::bit_cast<uint32_t>(x); }

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
    grid_.shift = (n >= 1 << 19 ? 13 : 14) - 2 * (k > 32);
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
    const int64_t key = int64_t(bits_of(grid_.base)) + (j << grid_.shift);
    return std::ldexp(double((key & 0x7fffff) | 0x800000), int(key >> 23) - 150) - double(grid_.base);
  }
  int64_t bin_of(double magnitude) const {
    const double t = std::min(magnitude + double(grid_.base), double(FLT_MAX));
    float f = float(t);
    if (double(f) > t) f = std::nextafterf(f, 0);
    return std::min<int64_t>((bits_of(f) - bits_of(grid_.base)) >> grid_.shift, grid_.half - 1);
  }

private:
  void sum_up() {
    for (int side = 0; side < 2; ++side) {
      auto &w = sides_[side].w, &s = sides_[side].s;
      w.assign(size_t(grid_.half) + 1, 0), s.assign(size_t(grid_.half) + 1, 0);
      for (int64_t j = grid_.half - 1; j >= 0; --j) {
        const auto bin = size_t(side ? grid_.half - 1 - j : grid_.half + j);
        w[size_t(j)] = w[size_t(j) + 1] + w_[bin], s[size_t(j)] = s[size_t(j) + 1] + s_[bin];
      }
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

Coarse coarse_at(const Histogram& histogram, const Levels& levels, double s) {
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
Collection collect(const std::vector<Values>& parts, const Histogram& histogram, const std::vector<uint8_t>& wanted) {
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
double mark(const Histogram& histogram, const Levels& levels, double a, double b, std::vector<uint8_t>& wanted) {
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

// ---- a problem -----------------------------------------------------------------------------------------------------

class Solver {
public:
  Solver(const QuantizeScaledPart* parts, int64_t count, const Levels& levels) : levels_(levels) {
    for (int64_t i = 0; i < count; ++i) {
      if (parts[i].n == 0) continue;
      values_.push_back({parts[i].x, parts[i].h, parts[i].n});
      codes_.push_back(parts[i].codes);
      n_ += parts[i].n;
    }
  }

  QuantizeScaledStatus solve(bool fixed, float* scale, double* distortion) {
    *distortion = 0;
    if (!fixed) *scale = 0;
    if (n_ == 0) return QuantizeScaledStatus::ok;
    if (!fixed) {
      Best best;
      if (n_ > kSmall && levels_.smallest_mid > 0 ? !by_histogram(best) : !by_values(best)) return status_;
      *scale = float(best.scale / levels_.unit);
    } else if (values_[0].h && !look()) {
      return status_;
    }
    *distortion = assign_codes(*scale);
    return std::isfinite(*distortion) || look() ? QuantizeScaledStatus::ok : status_;
  }

private:
  // A look at all values: false, with the status, if some are bad.
  bool look() {
    const auto kernel = LC_DISPATCH(quantize_scaled_stats);
    energy_ = 0, largest_ = 0;
    bool finite = true, weights_good = true;
    for (const Values& v : values_) {
      std::vector<QuantizeScaledStats> chunk(size_t(chunk_count(v.n, kChunk)));
      parallel_for(v.n, kChunk, [&](int64_t c, int64_t begin, int64_t end) {
        chunk[size_t(c)] = kernel(v.x + begin, v.h ? v.h + begin : nullptr, end - begin);
      });
      for (const QuantizeScaledStats& s : chunk) {
        energy_ += s.energy, largest_ = std::max(largest_, double(s.largest));
        finite &= s.finite, weights_good &= s.weights_good;
      }
    }
    status_ = !finite ? QuantizeScaledStatus::not_finite : QuantizeScaledStatus::bad_weights;
    return finite && weights_good;
  }

  bool by_values(Best& best) {
    if (!look()) return false;
    if (levels_.smallest_mid == 0)
      best.consider(sums_at(values_, levels_, 1)); // one assignment for all scales
    else if (largest_ > 0)
      search_values(values_, levels_, {}, 0, largest_ / levels_.smallest_mid * (1 + 1e-6), energy_, best);
    return true;
  }

  // The mean magnitude of a sample.
  double sampled_scale() const {
    double sum = 0;
    int64_t count = 0;
    for (const Values& v : values_) {
      const int64_t lines = std::min<int64_t>(v.n / 16 + 1, 64);
      for (int64_t line = 0; line < lines; ++line)
        for (int64_t i = v.n * line / lines; i < std::min(v.n, v.n * line / lines + 16); ++i)
          if (std::fabs(v.x[i]) <= FLT_MAX && v.x[i] != 0) sum += std::fabs(double(v.x[i])), ++count;
    }
    return count ? sum / double(count) : 0;
  }

  bool by_histogram(Best& best) {
    const double scale = sampled_scale();
    Histogram histogram(scale, 32 * scale, n_, levels_.k);
    if (!histogram.fill(values_)) { // beyond the sample's reach, or bad
      if (!look()) return false;
      if (largest_ == 0) return true;
      histogram = Histogram(scale > 0 ? scale : largest_, largest_, n_, levels_.k);
      histogram.fill(values_);
    }
    const double energy = histogram.energy();
    if (energy == 0) return true;
    const auto evaluate = [&](double s) {
      const Coarse c = coarse_at(histogram, levels_, s);
      return Point{s, c.high, c.sums};
    };
    Best coarse;
    std::vector<Point> points{evaluate(0), evaluate(histogram.edge(histogram.grid().half) / levels_.smallest_mid)};
    for (const Point& p : points) coarse.consider(p.sums);
    maximise(points, energy, 0x1p-12, coarse, evaluate, [](double, double) { return false; });
    double low = coarse.scale * (1 - 1e-6), high = coarse.scale * (1 + 1e-6);
    if (!points.empty()) low = std::min(low, points.front().s), high = std::max(high, points.back().s);
    std::vector<uint8_t> wanted;
    const double all = histogram.side(false).w[0] + histogram.side(true).w[0];
    if (mark(histogram, levels_, low, high, wanted) > all / 4) { // many levels on few values
      search_values(values_, levels_, {}, low, high, energy, best);
      return true;
    }
    const Collection kept = collect(values_, histogram, wanted);
    histogram.drop(wanted);
    const Sums rest = coarse_at(histogram, levels_, low).sums;
    search_values({kept.values(values_[0].h != nullptr)}, levels_, rest, low, high, energy, best);
    return true;
  }

  double assign_codes(float scale) const {
    Room codebook{}, mids;
    for (int j = 0; j < levels_.k; ++j) codebook[size_t(j)] = scale * float(levels_[j] * levels_.unit);
    midpoints(codebook.data(), levels_.k, mids.data() + 1);
    const QuantizeScaledBook book = levels_.book(double(scale) * levels_.unit, mids, codebook.data());
    const auto kernel = LC_DISPATCH(quantize_scaled_codes);
    double total = 0;
    for (size_t part = 0; part < values_.size(); ++part) {
      const Values& v = values_[part];
      std::vector<double> chunk(size_t(chunk_count(v.n, kChunk)));
      parallel_for(v.n, kChunk, [&](int64_t c, int64_t begin, int64_t end) {
        chunk[size_t(c)] = kernel(v.x + begin, v.h ? v.h + begin : nullptr, end - begin, book, codes_[part] + begin);
      });
      for (double d : chunk) total += d;
    }
    return total;
  }

  const Levels& levels_;
  std::vector<Values> values_;
  std::vector<uint8_t*> codes_;
  int64_t n_ = 0;
  double energy_ = 0, largest_ = 0;
  QuantizeScaledStatus status_{};
};

} // namespace

void quantize_scaled(const std::vector<QuantizeScaledPart>& parts, const std::vector<int64_t>& ends,
                     const float* levels, int k, bool fixed, float* scales, double* distortions,
                     std::vector<QuantizeScaledStatus>& status) {
  const Levels table(levels, k);
  const auto problems = int64_t(ends.size());
  status.resize(ends.size());
  const auto first = [&](int64_t p) { return p ? ends[size_t(p - 1)] : 0; };
  const auto size = [&](int64_t p) {
    int64_t n = 0;
    for (int64_t i = first(p); i < ends[size_t(p)]; ++i) n += parts[size_t(i)].n;
    return n;
  };
  const auto solve = [&](int64_t p) {
    Solver solver(parts.data() + first(p), ends[size_t(p)] - first(p), table);
    status[size_t(p)] = solver.solve(fixed, scales + p, distortions + p);
  };
  int64_t total = 0;
  for (int64_t p = 0; p < problems; ++p) {
    const int64_t n = size(p);
    total += std::min(n, kSmall);
    if (n > kSmall) solve(p); // with all threads
  }
  const int64_t grain = std::max<int64_t>(1, kSmall * problems / std::max<int64_t>(total, 1));
  parallel_for(problems, grain, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p)
      if (size(p) <= kSmall) solve(p);
  });
}

} // namespace lc::cpu
