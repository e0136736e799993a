// Joint choice of a support and a codebook on a histogram.
#pragma once
#include "histogram.h"
#include "partition.h"

namespace lc::cpu {

/// At most kappa nonzeros share k codewords, the others are zero. For any codebook the values that gain most from a
/// codeword are two tails, one below and one above zero. So the optimum on a histogram is, on either side, an optimal
/// partition of a prefix of its atoms counted from the outside; one dynamic program gives those of all prefixes and all
/// numbers of codewords.
class TailPartitions {
public:
  TailPartitions(const Histogram& histogram, int k);

  /// The choice that captures most of the sum of squares.
  struct Choice {
    double gain = 0;
    int below = 0, above = 0;             // codewords
    int below_atoms = 0, above_atoms = 0; // of values that are not zero
  };
  Choice best(int k, int64_t kappa) const;

  /// Its codewords, ascending; at most choice.below + choice.above.
  std::vector<double> codebook(const Choice& choice) const;

private:
  Partitions below_, above_;
  std::vector<double> above_best_; // gains of the best prefix of at most i atoms
};

} // namespace lc::cpu
