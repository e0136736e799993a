// For a codebook the corrected values are those further than some tau from every codeword. So a cell keeps one
// interval, and its mass and mean are differences of prefix sums over the histogram; tau is where the counts add up.
#include "kmeans_plus_sparse.h"

#include "histogram.h"
#include "partition.h"

namespace lc::cpu {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int kMaxAtoms = 2048;
constexpr int kFew = 32;         // codewords up to which a second start, and finer atoms, are worth their time
constexpr double kHardly = 1e-5; // a warm start stays if it would gain less than this part of the distortion
constexpr int kLloyd = 100;      // steps of one k-means among the turns

using Part = Histogram::Part;

Part operator-(Part a, Part b) { return {a.w - b.w, a.s - b.s, a.q - b.q}; }

double middle(const std::vector<double>& codebook, size_t c) { return (codebook[c] + codebook[c + 1]) / 2; }

// What the cells keep within tau of their codewords.
struct Kept {
  double tau = 0, distortion = 0;
  std::vector<double> low, high;
  std::vector<Part> part, cell; // of the interval and of the whole cell
};

class Trimmer {
public:
  Trimmer(const Histogram& histogram, int k, int64_t kappa)
      : histogram_(histogram), k_(k), kappa_(double(kappa)),
        reach_(std::max(-histogram.low(0), histogram.high(histogram.bins - 1))) {}

  // The intervals that leave kappa values out. `near`: a guess of tau, or 0.
  Kept trim(const std::vector<double>& codebook, double near) const {
    Kept kept;
    const size_t k = codebook.size();
    Part before{0, 0, 0};
    for (size_t c = 0; c < k; ++c) {
      const Part to = c + 1 < k ? histogram_.below(middle(codebook, c)) : histogram_.all();
      kept.cell.push_back(to - before);
      before = to;
    }
    kept.tau = solve_tau(codebook, near);
    for (size_t c = 0; c < k; ++c) {
      const auto [low, high] = interval(codebook, c, kept.tau);
      const Part part = histogram_.below(high) - histogram_.below(low);
      kept.low.push_back(low), kept.high.push_back(high), kept.part.push_back(part);
      kept.distortion += std::max(0.0, part.q - codebook[c] * (2 * part.s - codebook[c] * part.w));
    }
    return kept;
  }

  // Means of a good partition of the bins that `wanted` picks, and of `extra` more values at t.
  template <class F> std::vector<double> partition(const F& wanted, double extra, double t) const {
    const int special = histogram_.bin_of(t);
    std::vector<BinSum> bins;
    for (int b = 0; b < histogram_.bins; ++b) {
      BinSum bin{0, 0, histogram_.high(b) - histogram_.low(b)};
      if (wanted(b)) bin.count = histogram_.count[size_t(b)], bin.sum = histogram_.sum[size_t(b)];
      if (b == special) bin.count += extra, bin.sum += extra * t;
      if (bin.count > 0) bins.push_back(bin);
    }
    if (bins.empty()) return {0};
    const Partitions partitions(bins, k_ <= kFew ? kMaxAtoms : kMaxAtoms / 2, k_);
    std::vector<double> codebook = partitions.means(k_, partitions.atoms());
    std::sort(codebook.begin(), codebook.end());
    return codebook;
  }

  // At most the distortion of a codebook: for any tau it is at least sum min(r^2, tau^2) - kappa tau^2.
  double least_distortion(const std::vector<double>& codebook) const {
    const double tau = solve_tau(codebook, 0), cap = kappa_ > 0 ? tau * tau : 0;
    std::vector<Histogram::Piece> cost;
    for (size_t c = 0; c < codebook.size(); ++c) {
      const auto [low, high] = interval(codebook, c, tau);
      cost.push_back({low, 0, cap, true}); // of no length, where the last cell ends
      cost.push_back({high, codebook[c], 0, false});
    }
    if (kappa_ > 0) cost.push_back({kInfinity, 0, cap, true});
    return histogram_.least_cost(cost) - kappa_ * cap;
  }

  // The distance from t beyond which kappa values lie.
  double tau_around(double t) const { return solve_tau({t}, 0); }

private:
  std::pair<double, double> interval(const std::vector<double>& codebook, size_t c, double tau) const {
    const double left = c ? middle(codebook, c - 1) : -kInfinity;
    const double right = c + 1 < codebook.size() ? middle(codebook, c) : kInfinity;
    return {std::max(left, codebook[c] - tau), std::min(right, codebook[c] + tau)};
  }

  double excess(const std::vector<double>& codebook, double tau) const { // of kept values over what is to be kept
    double kept = kappa_ - histogram_.all().w;
    for (size_t c = 0; c < codebook.size(); ++c) {
      const auto [low, high] = interval(codebook, c, tau);
      if (low < high) kept += histogram_.below(high).w - histogram_.below(low).w;
    }
    return kept;
  }

  double solve_tau(const std::vector<double>& codebook, double near) const {
    if (kappa_ == 0) return kInfinity;
    double low = near * 0.98, high = near * 1.02, at_low = 0, at_high = 0;
    if (near == 0 || (at_low = excess(codebook, low)) > 0 || (at_high = excess(codebook, high)) < 0) {
      low = 0, high = 2 * reach_ + std::fabs(codebook.front()) + std::fabs(codebook.back());
      at_low = excess(codebook, low), at_high = excess(codebook, high);
    }
    int stuck = 0; // regula falsi, with a bisection wherever it does not shrink the interval
    for (int i = 0; i < 100 && high - low > 1e-12 * high && at_low < -0.5 && at_high > 0.5; ++i) {
      const double width = high - low;
      double tau = low + width * (stuck >= 2 ? 0.5 : std::clamp(at_low / (at_low - at_high), 0.01, 0.99));
      const double value = excess(codebook, tau);
      if (value > 0)
        high = tau, at_high = value;
      else
        low = tau, at_low = value;
      stuck = high - low > width / 2 ? stuck + 1 : 0;
    }
    return -at_low < at_high ? low : high;
  }

  const Histogram& histogram_;
  const int k_;
  const double kappa_, reach_;
};

// k-means of the kept intervals, and of the other values at the codewords they are corrected from.
class Remainder {
public:
  Remainder(const Histogram& histogram, const Kept& kept, const std::vector<double>& codebook)
      : histogram_(histogram), kept_(kept), from_(codebook) {
    before_.push_back({0, 0, 0});
    for (size_t c = 0; c < codebook.size(); ++c) {
      const Part &last = before_.back(), &part = kept.part[c];
      const double moved = kept.cell[c].w - part.w;
      before_.push_back({last.w + part.w + moved, last.s + part.s + moved * codebook[c], 0});
    }
  }

  void descend(std::vector<double>& codebook) const {
    const double fine = 1e-6 * (codebook.back() - codebook.front());
    for (int i = 0; i < kLloyd; ++i) {
      const std::vector<double> given = codebook;
      Part before{0, 0, 0};
      double moved = 0;
      for (size_t c = 0; c < given.size(); ++c) {
        const Part to = c + 1 < given.size() ? below(middle(given, c)) : before_.back(), cell = to - before;
        before = to;
        if (cell.w <= 0) continue;
        codebook[c] = std::clamp(cell.s / cell.w, c ? middle(given, c - 1) : -kInfinity,
                                 c + 1 < given.size() ? middle(given, c) : kInfinity);
        moved = std::max(moved, std::fabs(codebook[c] - given[c]));
      }
      std::sort(codebook.begin(), codebook.end());
      if (moved <= fine) break;
    }
  }

private:
  Part below(double t) const {
    size_t c = 0;
    while (c + 1 < from_.size() && middle(from_, c) < t) ++c;
    Part part = before_[c];
    if (t > kept_.low[c]) {
      const Part more = histogram_.below(std::min(t, kept_.high[c])) - histogram_.below(kept_.low[c]);
      part.w += more.w, part.s += more.s;
    }
    if (t >= from_[c]) {
      const double moved = kept_.cell[c].w - kept_.part[c].w;
      part.w += moved, part.s += moved * from_[c];
    }
    return part;
  }

  const Histogram& histogram_;
  const Kept& kept_;
  const std::vector<double>& from_;
  std::vector<Part> before_;
};

struct Descended {
  std::vector<double> codebook;
  double distortion, gained; // gained: since the start
  int turns;
};

Descended descend(const Histogram& histogram, const Trimmer& trimmer, const KmeansPlusSparseOptions& options,
                  std::vector<double> codebook) {
  Kept kept = trimmer.trim(codebook, 0);
  const double start = kept.distortion;
  int turns = 0;
  double stride = 1; // trimmed: steps beyond the means while that pays, since Lloyd's are short
  while (turns < options.max_iter) {
    ++turns;
    std::vector<double> next = codebook;
    if (options.turns == Turns::trimmed) {
      for (size_t c = 0; c < next.size(); ++c)
        if (kept.part[c].w > 0) next[c] += stride * (kept.part[c].s / kept.part[c].w - next[c]);
      std::sort(next.begin(), next.end());
    } else {
      Remainder(histogram, kept, codebook).descend(next);
    }
    Kept after = trimmer.trim(next, kept.tau);
    const bool little = !(kept.distortion - after.distortion > options.tol * after.distortion);
    if (after.distortion <= kept.distortion) codebook = next, kept = after;
    if (little && stride == 1) break;
    stride = little || options.turns != Turns::trimmed ? 1 : std::min(1.3 * stride, 8.0);
  }
  return {codebook, kept.distortion, start - kept.distortion, turns};
}

Descended cold_start(const Histogram& histogram, const Trimmer& trimmer, const KmeansPlusSparseOptions& options) {
  const auto inside = [&](double center, double tau) {
    return [&histogram, center, tau](int b) {
      return std::fabs((histogram.low(b) + histogram.high(b)) / 2 - center) <= tau;
    };
  };
  if (options.turns == Turns::alternate) { // the largest values are corrected first, which leaves zeros
    const double zero = -histogram.center;
    return descend(histogram, trimmer, options,
                   trimmer.partition(inside(zero, trimmer.tau_around(zero)), double(options.kappa), zero));
  }
  const auto trimmed = [&] { // without the values furthest from the center
    return descend(histogram, trimmer, options, trimmer.partition(inside(0, trimmer.tau_around(0)), 0, 0));
  };
  if (options.k > kFew && options.kappa > 0) return trimmed();
  const Descended all = descend(histogram, trimmer, options, trimmer.partition([](int) { return true; }, 0, 0));
  if (options.kappa == 0) return all;
  const Descended bulk = trimmed();
  return bulk.distortion < all.distortion ? bulk : all;
}

} // namespace

ListStatus kmeans_plus_sparse(const std::vector<const float*>& x, const std::vector<int64_t>& n,
                              const KmeansPlusSparseOptions& options, const std::vector<uint8_t*>& codes,
                              float* codebook, int64_t* indices, float* values, double* distortion,
                              int64_t* iterations) {
  const int k = options.k;
  int64_t total = 0;
  for (const int64_t size : n) total += size;
  const Histogram histogram(pieces_of(x, {}, n, {}), total, /*center_zero=*/false);
  if (!histogram.finite) return ListStatus::not_finite;
  const Trimmer trimmer(histogram, k, options.kappa);
  const std::vector<float> given(codebook, codebook + k);
  std::vector<double> start;
  for (const float c : given) start.push_back(double(c) - histogram.center);
  const Descended reached =
      options.warm ? descend(histogram, trimmer, options, start) : cold_start(histogram, trimmer, options);
  *iterations = reached.turns;
  std::vector<float> last;
  const bool stays = options.warm && reached.gained <= kHardly * reached.distortion;
  for (const double c : stays ? start : reached.codebook) last.push_back(float(c + histogram.center));
  std::sort(last.begin(), last.end());
  last.resize(size_t(k), last.back());
  const auto solve = [&](const std::vector<float>& book) {
    std::copy(book.begin(), book.end(), codebook);
    return codebook_plus_sparse(x, {}, n, codebook, k, options.kappa, codes, indices, values, distortion);
  };
  solve(last);
  // The steps took the mass inside a bin as uniform, so the start may have been better; mostly it is clear that not.
  if (options.warm && last != given && *distortion > trimmer.least_distortion(start)) {
    const double distortion_reached = *distortion;
    codebook_plus_sparse(x, {}, n, given.data(), k, options.kappa, {}, nullptr, nullptr, distortion);
    if (*distortion <= distortion_reached)
      solve(given);
    else
      *distortion = distortion_reached;
  }
  return ListStatus::ok;
}

} // namespace lc::cpu
