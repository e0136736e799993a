#include "partition.h"

#include <algorithm>
#include <cmath>

#include "rate_distortion.h"

namespace lc::cpu {

namespace {

struct Groups {
  std::vector<double> count, sum; // prefix sums
};

// Bins merged into at most max_groups groups of about equal density^(1/3) measure, which is how an optimal quantizer
// spends its codewords (Panter and Dite).
Groups grouped(const std::vector<BinSum>& bins, int max_groups) {
  std::vector<double> measure;
  double total = 0;
  for (const BinSum& bin : bins) total += measure.emplace_back(std::cbrt(bin.count * bin.width * bin.width));
  // An outlier would take most of the groups: cap its bin at one.
  for (int round = 0; round < 8; ++round) {
    const double cap = total / max_groups;
    total = 0;
    for (double& m : measure) total += m = std::min(m, cap);
  }
  const bool merge = int(bins.size()) > max_groups;
  Groups groups{{0}, {0}};
  double seen = 0;
  int64_t last = -1;
  for (size_t b = 0; b < bins.size(); ++b) {
    const auto group = int64_t((seen + measure[b] / 2) / total * max_groups);
    if (!merge || group != last) groups.count.push_back(groups.count.back()), groups.sum.push_back(groups.sum.back());
    last = group;
    groups.count.back() += bins[b].count, groups.sum.back() += bins[b].sum;
    seen += measure[b];
  }
  return groups;
}

} // namespace

Partitions::Partitions(const std::vector<BinSum>& bins, int max_atoms, int k) {
  Groups atoms = grouped(bins, max_atoms);
  count_ = std::move(atoms.count), sum_ = std::move(atoms.sum);
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
