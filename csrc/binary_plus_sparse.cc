// Let the window of kept magnitudes hold M values and move up by one: v leaves, u enters, and the mean goes from m to
// m'. The sum of squares about the mean changes by (u - v) (u + v - m - m'). While v and u stay in given bins, and with
// bounds of the mean, the sign of that is mostly certain. Where it is not, or turns from minus to plus, there may be a
// minimum, and the two bins are sorted.
#include "binary_plus_sparse.h"

#include <bit>

#include "error.h"
#include "histogram.h"
#include "parallel.h"

namespace lc::cpu {
namespace {

constexpr int64_t kLook = 64;

struct Bin {
  double low, high, sum;     // of magnitudes
  int64_t count, first;      // values in lower bins
  double sum_before;         // of them
  std::vector<float> sorted; // if wanted
  std::vector<double> prefix;
  bool wanted = false;
};

struct Segment {
  int64_t begin, end; // windows that start at these ranks
  size_t leaving, entering;
  bool wanted = false;
};

class WindowSearch {
public:
  WindowSearch(const Histogram& histogram, int64_t n, int64_t kappa) : kappa_(kappa), size_(n - kappa) {
    half_ = histogram.bins / 2;
    grid_ = histogram.grid();
    int64_t first = 0;
    double before = 0;
    for (int j = 0; j < half_; ++j) {
      const auto up = size_t(half_ + j), down = size_t(half_ - 1 - j);
      const auto count = int64_t(histogram.count[up] + histogram.count[down]);
      if (count == 0) continue;
      const double sum = histogram.sum[up] - histogram.sum[down];
      bins_.push_back({histogram.low(int(up)), histogram.high(int(up)), sum, count, first, before, {}, {}});
      index_.resize(size_t(j) + 1, -1);
      index_.back() = int(bins_.size()) - 1;
      first += count, before += sum;
    }
  }

  /// The values of c that may be the best; one, as a rule.
  std::vector<double> levels(const std::vector<Piece>& pieces) {
    if (size_ == 0) return {0};
    if (kappa_ == 0) return {(bins_.back().sum_before + bins_.back().sum) / double(size_)};
    find_segments();
    sort_wanted(pieces);
    std::vector<Window> windows;
    for (size_t i = 0; i < segments_.size(); ++i)
      if (segments_[i].wanted) windows.push_back(best_of(segments_[i]));
    double least = std::numeric_limits<double>::infinity();
    for (const Window& w : windows) least = std::min(least, w.high);
    std::vector<double> levels;
    for (const Window& w : windows)
      if (w.low <= least) levels.push_back(w.mean);
    std::sort(levels.begin(), levels.end());
    levels.erase(std::unique(levels.begin(), levels.end()), levels.end());
    return levels;
  }

private:
  struct Window {
    double mean, low, high; // and bounds of the sum of squares about it
  };
  struct Bounds {
    double low, high;
  };

  size_t bin_of_rank(int64_t rank) const {
    const auto after =
        std::upper_bound(bins_.begin(), bins_.end(), rank, [](int64_t r, const Bin& bin) { return r < bin.first; });
    return size_t(after - bins_.begin()) - 1;
  }

  // Of the sum of the `rank` lowest magnitudes.
  Bounds sum_below(int64_t rank) const {
    const Bin& bin = bins_[bin_of_rank(rank)];
    const auto inside = size_t(rank - bin.first);
    if (!bin.prefix.empty()) return {bin.sum_before + bin.prefix[inside], bin.sum_before + bin.prefix[inside]};
    const double j = double(inside), rest = double(bin.count) - j;
    return {bin.sum_before + std::max(j * bin.low, bin.sum - rest * bin.high),
            bin.sum_before + j * (bin.sum / double(bin.count))};
  }

  Bounds mean(int64_t begin) const {
    const Bounds to = sum_below(begin + size_), from = sum_below(begin);
    return {(to.low - from.high) / double(size_), (to.high - from.low) / double(size_)};
  }

  void find_segments() {
    int before = -1; // sign of the change: -1, 0 unknown, 1
    size_t leaving = 0, entering = bin_of_rank(size_);
    const auto end = [&](size_t bin) { return bins_[bin].first + bins_[bin].count; };
    for (int64_t s = 0; s < kappa_;) {
      const int64_t next = std::min({end(leaving), end(entering) - size_, kappa_});
      Segment segment{s, next, leaving, entering};
      const Bin &v = bins_[leaving], &u = bins_[entering];
      const double slack = 1e-12 * u.high;
      const int sign = v.high + u.high < 2 * mean(s).low - slack     ? -1
                       : v.low + u.low > 2 * mean(next).high + slack ? 1
                                                                     : 0;
      segment.wanted = sign == 0 || (before < 0 && sign > 0) || (sign < 0 && next == kappa_);
      if (sign > 0 && before < 0 && !segments_.empty()) segments_.back().wanted = true;
      segments_.push_back(segment);
      before = sign;
      s = next;
      if (s == end(leaving)) ++leaving;
      if (s < kappa_ && s + size_ == end(entering)) ++entering;
    }
    for (const Segment& segment : segments_)
      if (segment.wanted) bins_[segment.leaving].wanted = bins_[segment.entering].wanted = true;
  }

  void sort_wanted(const std::vector<Piece>& pieces) {
    std::vector<uint8_t> wanted(size_t(half_), 0);
    for (size_t j = 0; j < index_.size(); ++j) wanted[j] = index_[j] >= 0 && bins_[size_t(index_[j])].wanted;
    std::vector<std::vector<float>> found(pieces.size());
    const auto base = std::bit_cast<uint32_t>(grid_.base);
    const auto key_of = [&](float a) { return (std::bit_cast<uint32_t>(a + grid_.base) - base) >> grid_.shift; };
    double low = std::numeric_limits<double>::infinity(), high = 0; // of all wanted bins: a quick look at 64 values
    for (const Bin& bin : bins_)
      if (bin.wanted) low = std::min(low, bin.low), high = std::max(high, bin.high);
    const double middle = (low + high) / 2;
    double gap_low = low, gap_high = high; // the widest stretch about the middle that holds no wanted bin
    for (const Bin& bin : bins_) {
      if (!bin.wanted) continue;
      if (bin.high <= middle)
        gap_low = std::max(gap_low, bin.high);
      else if (bin.low >= middle)
        gap_high = std::min(gap_high, bin.low);
      else
        gap_low = high, gap_high = low; // no gap
    }
    // Rounding may put a value into the next bin: a margin of a part in 2^20 of the sum that the grid rounds.
    const auto outwards = [&](double edge, double sign) {
      return float(edge + sign * 1e-6 * (edge + double(grid_.base)));
    };
    const float from = outwards(low, -1), to = outwards(high, 1), near = outwards(gap_low, 1),
                far = outwards(gap_high, -1);
    parallel_for(int64_t(pieces.size()), 1, [&](int64_t p, int64_t, int64_t) {
      const Piece& piece = pieces[size_t(p)];
      for (int64_t i = 0; i < piece.n; i += kLook) {
        const int64_t end = std::min(i + kLook, piece.n);
        int seen = 0;
        for (int64_t j = i; j < end; ++j) {
          const float a = std::fabs(piece.x[j]);
          seen |= (int(a >= from) & int(a <= near)) | (int(a >= far) & int(a <= to));
        }
        if (!seen) continue;
        for (int64_t j = i; j < end; ++j) {
          const float a = std::fabs(piece.x[j]);
          if (wanted[key_of(a)]) found[size_t(p)].push_back(a);
        }
      }
    });
    for (const auto& values : found)
      for (const float a : values) bins_[size_t(index_[key_of(a)])].sorted.push_back(a);
    for (Bin& bin : bins_) {
      if (!bin.wanted) continue;
      LC_CHECK(int64_t(bin.sorted.size()) == bin.count);
      const auto [low, high] = std::minmax_element(bin.sorted.begin(), bin.sorted.end());
      if (*low != *high) std::sort(bin.sorted.begin(), bin.sorted.end());
      bin.prefix.push_back(0);
      for (const float a : bin.sorted) bin.prefix.push_back(bin.prefix.back() + double(a));
    }
  }

  // The best window of a segment whose two bins are sorted.
  Window best_of(const Segment& segment) const {
    const Bin &v = bins_[segment.leaving], &u = bins_[segment.entering];
    double m = mean(segment.begin).low, change = 0, least = 0;
    int64_t at = segment.begin;
    for (int64_t s = segment.begin; s < segment.end; ++s) {
      const double out = v.sorted[size_t(s - v.first)], in = u.sorted[size_t(s + size_ - u.first)];
      const double next = m + (in - out) / double(size_);
      change += (in - out) * (in + out - m - next);
      m = next;
      if (change < least) least = change, at = s + 1;
    }
    const double best = mean(at).low; // again, since the steps have accumulated rounding
    return spread(at, best);
  }

  // Bounds of the sum of squares about `center` of the window that starts at rank `begin`.
  Window spread(int64_t begin, double center) const {
    Window window{center, 0, 0};
    for (const Bin& bin : bins_) {
      const int64_t from = std::clamp<int64_t>(begin - bin.first, 0, bin.count);
      const int64_t to = std::clamp<int64_t>(begin + size_ - bin.first, 0, bin.count);
      if (from == to) continue;
      if (!bin.sorted.empty()) {
        double sum = 0;
        for (int64_t i = from; i < to; ++i) sum += square(double(bin.sorted[size_t(i)]) - center);
        window.low += sum, window.high += sum;
      } else { // a whole bin: those a window cuts are sorted
        const double w = double(bin.count), at = bin.sum / w;
        window.low += w * square(at - center);
        window.high += w * (square(at - center) + std::max(0.0, (at - bin.low) * (bin.high - at)));
      }
    }
    window.low *= 1 - 1e-12, window.high *= 1 + 1e-12;
    return window;
  }

  static double square(double d) { return d * d; }

  const int64_t kappa_, size_;
  int half_;
  ValueGrid grid_;
  std::vector<Bin> bins_;
  std::vector<int> index_; // from a distance on the grid to bins_, or -1
  std::vector<Segment> segments_;
};

} // namespace

ListStatus binary_plus_sparse(const std::vector<const float*>& x, const std::vector<int64_t>& n, int64_t kappa,
                              const std::vector<uint8_t*>& codes, float* codebook, int64_t* indices, float* values,
                              double* distortion) {
  int64_t total = 0;
  for (const int64_t size : n) total += size;
  const std::vector<Piece> pieces = pieces_of(x, {}, n, {});
  const Histogram histogram(pieces, total, /*center_zero=*/true);
  if (!histogram.finite) return ListStatus::not_finite;
  const std::vector<double> levels = WindowSearch(histogram, total, kappa).levels(pieces);
  double best = 0, least = std::numeric_limits<double>::infinity();
  for (const double c : levels) {
    const float trial[2] = {-float(c), float(c)};
    if (levels.size() > 1)
      codebook_plus_sparse(x, {}, n, trial, 2, kappa, {}, nullptr, nullptr, distortion);
    else
      *distortion = 0;
    if (*distortion < least) least = *distortion, best = c;
  }
  codebook[0] = -float(best), codebook[1] = float(best);
  return codebook_plus_sparse(x, {}, n, codebook, 2, kappa, codes, indices, values, distortion);
}

} // namespace lc::cpu
