#include "partition.h"

#include <algorithm>
#include <cmath>

#include "rate_distortion.h"

namespace lc::cpu {

// Atoms of about equal density^(1/3) measure, which is how an optimal quantizer spends its codewords (Panter and Dite).
Partitions::Partitions(const std::vector<BinSum>& bins, int max_atoms, int k) {
  std::vector<double> measure;
  double total = 0;
  for (const BinSum& bin : bins) total += measure.emplace_back(std::cbrt(bin.count * bin.width * bin.width));
  // An outlier would take most of the atoms: cap its bin at one.
  for (int round = 0; round < 8; ++round) {
    const double cap = total / max_atoms;
    total = 0;
    for (double& m : measure) total += m = std::min(m, cap);
  }
  const bool merge = int(bins.size()) > max_atoms;
  count_.assign(1, 0), sum_.assign(1, 0);
  double seen = 0;
  int64_t last = -1;
  for (size_t b = 0; b < bins.size(); ++b) {
    const auto group = int64_t((seen + measure[b] / 2) / total * max_atoms);
    if (!merge || group != last) count_.push_back(count_.back()), sum_.push_back(sum_.back());
    last = group;
    count_.back() += bins[b].count, sum_.back() += bins[b].sum;
    seen += measure[b];
  }
  atoms_ = int(count_.size()) - 1;
  gains_.resize(size_t(k + 1) * count_.size()), last_.resize(gains_.size());
  LC_DISPATCH(partition_gains)(count_.data(), sum_.data(), atoms_, k, gains_.data(), last_.data());
}

std::vector<double> Partitions::means(int cells, int atoms) const {
  std::vector<double> means;
  int end = atoms;
  for (cells = std::min(cells, atoms); cells > 0; --cells) {
    const double* f = gains(cells - 1);
    const auto w = [&](int i) { return count_[size_t(end)] - count_[size_t(i)]; };
    const auto s = [&](int i) { return sum_[size_t(end)] - sum_[size_t(i)]; };
    int at = cells - 1;
    double best = -1;
    for (int i = cells - 1; i < (cells == 1 ? 1 : end); ++i) {
      const double gain = f[i] + s(i) * s(i) / w(i);
      if (gain > best) best = gain, at = i;
    }
    means.push_back(s(at) / w(at));
    end = at;
  }
  return means;
}

} // namespace lc::cpu
