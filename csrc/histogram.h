// Counts and sums of values on a fine grid: the statistic that sums and joint compressions are solved on.
#pragma once
#include "rate_distortion.h"
#include "select.h"

namespace lc::cpu {

class Histogram {
public:
  /// One pass over the data (two if a sample misjudges the range). With `center_zero` the grid is symmetric about 0,
  /// else about the median of a sample. Check `finite` first.
  Histogram(const std::vector<cpu::Piece>& pieces, int64_t n, bool center_zero);

  bool finite = true;
  double center = 0;              // all that follows is in t = x - center
  double squares = 0;             // sum of t^2
  int bins = 0;                   // 2 * half
  std::vector<double> count, sum; // of each bin

  double low(int bin) const { return edges_[size_t(bin)]; }
  double high(int bin) const { return edges_[size_t(bin) + 1]; }
  /// The bin of a value of t.
  int bin_of(double t) const;
  const ValueGrid& grid() const { return grid_; }

  struct Part {
    double w, s, q; // count, sum of t, and sum of t^2 up to the spread inside a bin
  };
  /// Everything at or below t. Inside a bin the mass is taken as uniform on the widest interval with the right mean.
  Part below(double t) const;
  Part all() const { return prefix_.back(); }

  /// A piece of a cost: (t - center)^2 + offset, or just offset, up to `end` and from where the last piece ends.
  struct Piece {
    double end, center, offset;
    bool flat;
  };
  /// At most the sum of a cost over the data, the cost being continuous and its last piece without end. Short of that
  /// sum by the spread inside the bins that hold an end of a piece, and by the rounding of the values in the sums.
  double least_cost(const std::vector<Piece>& cost) const;

private:
  bool fill(const std::vector<cpu::Piece>& pieces);
  Part inside(int bin, double t) const;
  void make_grid(double center, double scale, double reach);

  ValueGrid grid_{};
  std::vector<double> edges_;
  std::vector<Part> prefix_; // before each bin
};

} // namespace lc::cpu
