// For a codebook the benefit of a nonzero, x^2 - (x - c(x))^2, rises with |x| on either side of zero, so the support is
// what lies outside an interval around zero, and the count fixes one Lagrange multiplier: the least benefit. On the
// histogram a Lloyd step under that constraint costs O(k) look-ups.
#include "sparse_codebook.h"

#include "tail_partitions.h"

namespace lc::cpu {
namespace {

constexpr double kHardly = 1e-5; // a warm start stays if it would gain less than this part of the distortion
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Lloyd steps under the constraint that at most kappa values are not zero.
class Descent {
public:
  Descent(const Histogram& histogram, int64_t kappa) : histogram_(histogram), kappa_(double(kappa)) {}

  struct Way {
    int iterations;
    double gained; // part of the distortion
  };

  /// Moves the ascending codebook until a step gains less than 1e-7 of the distortion, max_iter times at most.
  Way run(std::vector<double>& codebook, int max_iter) const {
    std::vector<double> next = codebook;
    const double start = step(next);
    double least = start; // distortion of `codebook`
    int iterations = 0;
    while (iterations < max_iter) {
      const std::vector<double> candidate = next;
      const double distortion = step(next), gain = least - distortion;
      if (!(gain > 0)) break;
      codebook = candidate, least = distortion;
      ++iterations;
      if (gain <= 1e-7 * least) break;
    }
    return {iterations, start > 0 ? 1 - least / start : 0};
  }

  /// At most the distortion of a codebook: for any benefit b it is at least sum min(x^2, (x - c)^2 + b) - kappa b.
  double least_distortion(const std::vector<double>& codebook) const {
    const Window zero = constrained(codebook).low;
    std::vector<Histogram::Piece> cost;
    for (size_t c = 0; c < codebook.size(); ++c) {
      if (codebook[c] == 0) continue;
      const double middle = c + 1 < codebook.size() ? (codebook[c] + codebook[c + 1]) / 2 : kInfinity;
      if (codebook[c] > 0 && (cost.empty() || cost.back().end < zero.high)) cost.push_back({zero.high, 0, 0, false});
      cost.push_back({codebook[c] < 0 ? std::min(middle, zero.low) : std::max(middle, zero.high), codebook[c],
                      zero.benefit, false});
    }
    if (cost.empty() || cost.back().end < kInfinity) cost.push_back({kInfinity, 0, 0, false});
    return histogram_.least_cost(cost) - kappa_ * zero.benefit;
  }

private:
  struct Window { // values between are zero, the others gain at least the benefit
    double low, high, benefit;
  };

  static Window window(const std::vector<double>& codebook, double benefit) {
    Window w{-kInfinity, kInfinity, benefit};
    for (const double c : codebook) {
      const double edge = (benefit / c + c) / 2;
      if (c < 0) w.low = std::max(w.low, edge);
      if (c > 0) w.high = std::min(w.high, edge);
    }
    return w;
  }

  double outside(Window w) const {
    return histogram_.below(w.low).w + (histogram_.all().w - histogram_.below(w.high).w);
  }

  // Windows of almost the same benefit, with too many values outside and with too few; both the same if few gain at
  // all.
  struct Zero {
    Window low, high;
    double share; // of what lies between them that may be outside: a bin of equal values
  };

  Zero constrained(const std::vector<double>& codebook) const {
    const Window all = window(codebook, 0);
    if (outside(all) <= kappa_) return {all, all, 0};
    const double reach = std::max(-histogram_.low(0), histogram_.high(histogram_.bins - 1));
    const double largest = std::max(std::fabs(codebook.front()), std::fabs(codebook.back()));
    double low = 0, high = 2 * reach * largest;
    for (int i = 0; i < 60 && high - low > 1e-12 * high; ++i) {
      const double middle = (low + high) / 2;
      (outside(window(codebook, middle)) > kappa_ ? low : high) = middle;
    }
    const Window many = window(codebook, low), few = window(codebook, high);
    const double more = outside(many), less = outside(few);
    return {many, few, more > less ? std::clamp((kappa_ - less) / (more - less), 0.0, 1.0) : 0};
  }

  // Everything below an end of the window that lies between a and b, the share of b's.
  Histogram::Part below(double a, double b, double share) const {
    const Histogram::Part from = histogram_.below(a);
    if (a == b) return from;
    const Histogram::Part to = histogram_.below(b);
    return {from.w + share * (to.w - from.w), from.s + share * (to.s - from.s), 0};
  }

  // One step; returns the distortion before it.
  double step(std::vector<double>& codebook) const {
    const Zero zero = constrained(codebook);
    const std::vector<double> given = codebook;
    double gain = 0;
    for (size_t c = 0; c < given.size(); ++c) {
      if (given[c] == 0) continue;
      const double left = c ? (given[c - 1] + given[c]) / 2 : -kInfinity;
      const double right = c + 1 < given.size() ? (given[c] + given[c + 1]) / 2 : kInfinity;
      const bool up = given[c] > 0;
      const double from = up ? std::max(left, zero.low.high) : left, to = up ? right : std::min(right, zero.low.low);
      if (!(from < to)) continue;
      const Histogram::Part start =
          up ? below(std::max(left, zero.high.high), from, zero.share) : histogram_.below(left);
      const Histogram::Part end = up ? histogram_.below(right) : below(std::min(right, zero.high.low), to, zero.share);
      const double w = end.w - start.w, s = end.s - start.s;
      if (w <= 0) continue;
      gain += given[c] * (2 * s - given[c] * w);
      codebook[c] = std::clamp(s / w, from, to);
    }
    std::sort(codebook.begin(), codebook.end()); // an empty cell has kept its codeword
    return histogram_.squares - gain;
  }

  const Histogram& histogram_;
  const double kappa_;
};

} // namespace

ListStatus sparse_codebook(const std::vector<const float*>& x, const std::vector<int64_t>& n, int k, int64_t kappa,
                           bool warm, int max_iter, const std::vector<uint8_t*>& codes, float* codebook,
                           double* distortion, int64_t* used, int64_t* iterations) {
  int64_t total = 0;
  for (const int64_t size : n) total += size;
  const Histogram histogram(pieces_of(x, {}, n, {}), total, /*center_zero=*/true);
  if (!histogram.finite) return ListStatus::not_finite;
  std::vector<double> start(codebook, codebook + k);
  double start_distortion = 0; // at least
  if (!warm) {
    const TailPartitions tails(histogram, k);
    const TailPartitions::Choice choice = tails.best(k, kappa);
    start = tails.codebook(choice);
    start_distortion = histogram.squares - choice.gain;
  }
  const Descent descent(histogram, kappa);
  std::vector<double> reached = start;
  const Descent::Way way = reached.empty() ? Descent::Way{0, 0} : descent.run(reached, max_iter);
  *iterations = way.iterations;
  if (warm && way.gained <= kHardly) reached = start;
  const auto round = [&](std::vector<double>& values) {
    std::vector<float> rounded;
    for (const double c : values) rounded.push_back(float(c));
    if (rounded.empty()) rounded.push_back(0);
    std::sort(rounded.begin(), rounded.end());
    rounded.resize(size_t(k), rounded.back());
    return rounded;
  };
  const auto solve = [&](const std::vector<float>& book) {
    std::copy(book.begin(), book.end(), codebook);
    return nearest_sparse(x, {}, n, codebook, k, kappa, codes, distortion, used);
  };
  const std::vector<float> first = round(start), last = round(reached);
  solve(last);
  // The steps took the mass inside a bin as uniform, so the start may have been better; mostly it is clear that not.
  if (warm && first != last) start_distortion = descent.least_distortion(start);
  if (first != last && *distortion > start_distortion) {
    double distortion_started = 0;
    int64_t used_started = 0;
    nearest_sparse(x, {}, n, first.data(), k, kappa, {}, &distortion_started, &used_started);
    if (distortion_started <= *distortion) solve(first);
  }
  return ListStatus::ok;
}

} // namespace lc::cpu
