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

#include "assign.h"
#include "quantize_scaled_histogram.h"

namespace lc::cpu {
namespace {

using namespace scaled;

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
      if (n_ >= (levels_.k > 32 ? kFewForMany : kFewValues) && levels_.smallest_mid > 0 ? !by_histogram(best)
                                                                                        : !by_values(best))
        return status_;
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
    const bool looked = n_ < kManyValues; // there, more bins than needed cost more than a look
    if (looked && !look()) return false;
    if (looked && largest_ == 0) return true;
    Histogram histogram(looked && scale == 0 ? largest_ : scale, looked ? largest_ : 32 * scale, n_, levels_.k);
    if (!histogram.fill(values_)) { // beyond the sample's reach, or bad
      if (!look()) return false;
      if (largest_ == 0) return true;
      histogram = Histogram(scale > 0 ? scale : largest_, largest_, n_, levels_.k);
      histogram.fill(values_);
    }
    const double energy = looked ? energy_ : histogram.energy();
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
