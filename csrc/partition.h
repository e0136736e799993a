// Optimal partitions of a histogram, by dynamic programming.
#pragma once
#include <cstddef>
#include <vector>

namespace lc::cpu {

/// Values of one bin: how many, their sum, and the width of the bin.
struct BinSum {
  double count, sum, width;
};

/// The optimal partitions of all prefixes of a sequence of ascending (or descending) bins into 1..k cells, each cell
/// represented by its mean. Bins are merged into at most max_atoms atoms, cells are made of atoms.
class Partitions {
public:
  Partitions() = default;
  Partitions(const std::vector<BinSum>& bins, int max_atoms, int k);

  int atoms() const { return atoms_; }
  /// Values in the first i atoms.
  double count(int i) const { return count_[std::size_t(i)]; }
  /// gains(j)[i]: what j cells of the first i atoms capture of their sum of squares, at most; i in 0..atoms().
  const double* gains(int j) const { return gains_.data() + std::size_t(j) * (std::size_t(atoms_) + 1); }
  /// last(j)[i]: what the last of them, atom i - 1, contributes to that.
  const double* last(int j) const { return last_.data() + std::size_t(j) * (std::size_t(atoms_) + 1); }
  /// The means of the cells of gains(cells)[atoms], last one first; min(cells, atoms) of them.
  std::vector<double> means(int cells, int atoms) const;

private:
  int atoms_ = 0;
  std::vector<double> count_, sum_; // prefix sums
  std::vector<double> gains_, last_;
};

} // namespace lc::cpu
