#include "tail_partitions.h"

namespace lc::cpu {
namespace {

constexpr int kMaxAtoms = 1024; // on either side of zero

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

} // namespace

TailPartitions::TailPartitions(const Histogram& histogram, int k)
    : below_(side(histogram, true), kMaxAtoms, k), above_(side(histogram, false), kMaxAtoms, k) {
  for (int j = 0; j <= k; ++j) {
    double best = 0;
    for (int i = 0; i <= above_.atoms(); ++i) above_best_.push_back(best = std::max(best, above_.gains(j)[i]));
  }
}

TailPartitions::Choice TailPartitions::best(int k, int64_t kappa) const {
  std::vector<int> partner; // partner[i]: the atoms above zero that i atoms below it leave room for
  int above = above_.atoms();
  for (int i = 0; i <= below_.atoms() && below_.count(i) <= double(kappa); ++i) {
    while (above_.count(above) > double(kappa) - below_.count(i)) --above;
    partner.push_back(above);
  }
  Choice choice;
  for (int j = 0; j <= k; ++j) {
    const double* f = below_.gains(j);
    const double* g = above_best_.data() + size_t(k - j) * size_t(above_.atoms() + 1);
    for (size_t i = 0; i < partner.size(); ++i)
      if (f[i] + g[partner[i]] > choice.gain) choice = {f[i] + g[partner[i]], j, k - j, int(i), partner[i]};
  }
  const double* g = above_.gains(choice.above);
  choice.above_atoms = int(std::max_element(g, g + choice.above_atoms + 1) - g);
  return choice;
}

std::vector<double> TailPartitions::codebook(const Choice& choice) const {
  std::vector<double> codewords = below_.means(choice.below, choice.below_atoms);
  for (const double c : above_.means(choice.above, choice.above_atoms)) codewords.push_back(c);
  std::sort(codewords.begin(), codewords.end());
  return codewords;
}

} // namespace lc::cpu
