#include "tail_partitions.h"

#include "parallel.h"

namespace lc::cpu {
namespace {

constexpr int kMaxAtoms = 1024; // on either side of zero
constexpr int kFewAtoms = 512;

std::vector<BinSum> side(const Histogram& histogram, bool below) {
  std::vector<BinSum> bins;
  const int half = histogram.bins / 2;
  for (int j = half; j-- > 0;) {
    const int b = below ? half - 1 - j : half + j;
    if (histogram.count[size_t(b)] > 0)
      bins.push_back({histogram.count[size_t(b)], histogram.sum[size_t(b)], histogram.high(b) - histogram.low(b)});
  }
  return bins;
}

// partner[i]: the atoms of b that i atoms of a leave room for.
std::vector<int> partners(const Partitions& a, const Partitions& b, int64_t kappa) {
  std::vector<int> partner;
  int j = b.atoms();
  for (int i = 0; i <= a.atoms() && a.count(i) <= double(kappa); ++i) {
    while (b.count(j) > double(kappa) - a.count(i)) --j;
    partner.push_back(j);
  }
  return partner;
}

} // namespace

TailPartitions::TailPartitions(const Histogram& histogram, int k) {
  parallel_for(2, 1, [&](int64_t i, int64_t, int64_t) {
    (i ? above_ : below_) = Partitions(side(histogram, i == 0), kMaxAtoms, k);
  });
  for (int j = 0; j <= k; ++j) {
    double best = 0;
    for (int i = 0; i <= above_.atoms(); ++i) above_best_.push_back(best = std::max(best, above_.gains(j)[i]));
  }
}

TailPartitions::Choice TailPartitions::best(int k, int64_t kappa) const {
  const std::vector<int> partner = partners(below_, above_, kappa), back = partners(above_, below_, kappa);
  Choice choice;
  choice.above = k;
  for (int j = 0; j <= k; ++j) {
    const double* f = below_.gains(j);
    const double* g = above_best_.data() + size_t(k - j) * size_t(above_.atoms() + 1);
    for (size_t i = 0; i < partner.size(); ++i)
      if (f[i] + g[partner[i]] > choice.gain) choice = {f[i] + g[partner[i]], j, k - j, int(i), partner[i]};
  }
  const double* g = above_.gains(choice.above);
  choice.above_atoms = int(std::max_element(g, g + choice.above_atoms + 1) - g);

  // Whole atoms leave some of the count unused: part of one more, with the codebook that goes with all of it. With many
  // atoms that changes little, so the numbers of codewords nearby are enough.
  const bool all = below_.atoms() + above_.atoms() <= kFewAtoms;
  const int first = all ? 0 : std::max(0, choice.below - 1), last = all ? k : std::min(k, choice.below + 1);
  const auto part = [&](const Partitions& a, int i, const Partitions& b, int j, int cells) {
    const double room = double(kappa) - a.count(i) - b.count(j), size = b.count(j + 1) - b.count(j);
    return b.gains(cells)[j + 1] - (1 - room / size) * std::max(0.0, b.last(cells)[j + 1]);
  };
  for (int j = first; j <= last; ++j) {
    for (int i = 0; i < int(partner.size()); ++i) {
      const int b = partner[size_t(i)];
      if (b == above_.atoms()) continue;
      const double gain = below_.gains(j)[i] + part(below_, i, above_, b, k - j);
      if (gain > choice.gain) choice = {gain, j, k - j, i, b + 1};
    }
    for (int i = 0; i < int(back.size()); ++i) {
      const int b = back[size_t(i)];
      if (b == below_.atoms()) continue;
      const double gain = above_.gains(k - j)[i] + part(above_, i, below_, b, j);
      if (gain > choice.gain) choice = {gain, j, k - j, b + 1, i};
    }
  }
  return choice;
}

std::vector<double> TailPartitions::codebook(const Choice& choice) const {
  std::vector<double> codewords = below_.means(choice.below, choice.below_atoms);
  for (const double c : above_.means(choice.above, choice.above_atoms)) codewords.push_back(c);
  std::sort(codewords.begin(), codewords.end());
  return codewords;
}

} // namespace lc::cpu
