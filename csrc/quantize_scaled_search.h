// The search of quantize_scaled for the best scale, by branch and bound over values. Included by its .cc only.
#pragma once
#include <algorithm>
#include <array>
#include <cfloat>
#include <cmath>
#include <limits>

#include "parallel.h"
#include "quantize_scaled.h"

namespace lc::cpu::scaled {

constexpr int64_t kChunk = 1 << 16;
constexpr int64_t kSmall = 1 << 15;      // problems of more values take all threads, one after the other
constexpr int64_t kFewValues = 1 << 12;  // below, no histogram; with many levels, below
constexpr int64_t kFewForMany = 1 << 14; // so many
constexpr int64_t kManyValues = 1 << 17; // a sample of them bounds the rest, nearly always
constexpr double kTolerance = 1e-8;      // of the distortion
constexpr double kRounding = 1e-14;      // of the gain
constexpr int kMaxEvaluations = 1000;    // far more than measured (6 to 190)
using Room = std::array<float, 260>;     // thresholds, and what the kernels want around them

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
inline double bound(const Point& p, const Point& q) {
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
    for (int j = 0; j + 1 < k; ++j) {
      const double t = s * mids[size_t(j)];
      float& threshold = room[size_t(j) + 1] = float(t);
      // Downwards, so that the same floats lie above it: among denormal values the nearest is too coarse.
      if (std::fabs(t) < double(FLT_MIN) && double(threshold) > t)
        threshold = std::nextafter(threshold, -std::numeric_limits<float>::infinity());
    }
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
    if (step_ > 0 && 1 / (step_ * s) < double(FLT_MAX)) { // not at 0, where denormal values are beyond it
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

inline Sums sums_at(const std::vector<Values>& parts, const Levels& levels, double s) {
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
inline void filter(const std::vector<Values>& parts, const Levels& levels, double a, double b, Collection& kept,
                   Sums& fixed) {
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
inline void sweep(const Collection& kept, const Levels& levels, bool weighted, Sums sums, std::vector<Event>& events,
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
inline void search_values(const std::vector<Values>& values, const Levels& levels, Sums fixed, double low, double high,
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

} // namespace lc::cpu::scaled
