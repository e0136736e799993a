// Internal to kmeans1d: the data of one problem as a distribution of weight on a line, in t = x - center, in double.
//
// Either bins (Kmeans1dGrid), each with its weight and sum, of which some may be opened: their values collected and
// sorted. Or, where there are few, the distinct values themselves.
#pragma once
#include <cstring>

#include "kmeans1d.h"

namespace lc::cpu::kmeans {

inline uint32_t bits_of(float x) {
  uint32_t b;
  std::memcpy(&b, &x, sizeof b);
  return b;
}
inline uint64_t bits_of(double x) {
  uint64_t b;
  std::memcpy(&b, &x, sizeof b);
  return b;
}
inline float float_of(uint32_t b) {
  float x;
  std::memcpy(&x, &b, sizeof x);
  return x;
}
inline double double_of(uint64_t b) {
  double x;
  std::memcpy(&x, &b, sizeof x);
  return x;
}
inline bool is_finite(float x) { return (bits_of(x) & 0x7f800000) != 0x7f800000; }

/// At most this many values of one part of the data: what a thread takes at a time.
constexpr int64_t kChunk = 1 << 16;

struct Chunk {
  const float* x;
  const float* h; // or null
  int64_t size;
};

/// A grid whose bins are narrow out to `scale` from the center and reach at least to `reach`, with 2 * half of them or
/// fewer.
Kmeans1dGrid make_grid(double center, double scale, double reach, int half);

/// Weight, and weight times t.
struct Sums {
  double w, s;
};

/// What a partition does not split: a bin, a distinct value, or a run of the values of an opened bin.
struct Atom {
  double w, s, width; // of the interval it stands for, the gap below it included
};

class Mass {
public:
  /// The values, if at most `limit` are distinct. Returns false if more are, or if `finite` turns out false.
  bool take_values(const std::vector<Chunk>& chunks, int64_t n, int limit);

  /// At most kSmall values.
  static constexpr int kSmall = 256;
  void take_small(const Chunk& chunk);

  /// A histogram of at most 2 * half bins. Returns false if a value is not finite or a weight is bad.
  bool take_bins(const std::vector<Chunk>& chunks, int64_t n, int half);

  /// Opens these bins: one pass over the data.
  void open(const std::vector<Chunk>& chunks, std::vector<int> bins);

  /// Everything at or below t. In a closed bin: by a linear density that has the mean of the bin. *closed = such a bin
  /// that t is in, or -1.
  Sums below(double t, int* closed) const;
  Sums total() const { return total_; }

  /// What the sum of w (x - t) above t may be off by, because of a closed bin that t is in.
  double doubt(double t) const;

  void atoms(std::vector<Atom>& out) const;

  /// Whether what a closed bin hides may weigh more than `much`: its weight at the two ends of the bin.
  bool hides(double much) const { return binned && heaviest_ / 4 > much; }
  std::vector<int> heavy_bins(double much) const;

  /// What the atoms leave open, in terms of the distortion of a codebook on the data less that on the atoms. For two
  /// codebooks these differ by at most in_bins, for the bins that a boundary may split; plus 4 by_rounding times the
  /// root of the larger distortion, for values rounded to keys; plus in_sums, for the rounding of prefix sums.
  struct Hidden {
    double in_bins, by_rounding, in_sums;
  };
  Hidden hidden() const;

  double center = 0;
  bool finite = true;
  bool binned = false;
  Kmeans1dGrid grid{};       // of the bins
  std::vector<float> values; // the distinct ones with weight, ascending, unless binned

private:
  struct Opened { // `size` values from `first` on in t_; their prefix sums have one entry more
    int64_t first, size;
  };
  bool fill(const std::vector<Chunk>& chunks, int64_t n);
  bool fill_weighted(const std::vector<Chunk>& chunks, int64_t n);
  void sum_up(bool weighted);
  void take_sorted(const std::vector<double>& weights);
  Sums within(const Opened& o, double t) const;
  double second_moment(const Opened& o) const;
  struct Place { // of a t: its bin, or one beyond the first or last; the bin's lower end and width; where in it, 0 to 1
    int bin;
    double low, width, within;
  };
  Place place(double t) const;
  bool single_valued(int bin) const; // as far as can be told
  double edge(int bin) const;        // the lower end of a bin
  double width(int bin) const { return edge(bin + 1) - edge(bin); }
  bool is_open(int bin) const { return !slot_.empty() && slot_[size_t(bin)] >= 0; }

  Sums total_{0, 0};
  double heaviest_ = 0;                       // the largest weight * width^2 of a bin
  std::vector<double> w_, s_, w_sum_, s_sum_; // of each bin; of all before it
  std::vector<double> low_;                   // of each bin: see kmeans1d_flush
  mutable std::vector<uint8_t> known_;        // of each bin: whether it is single-valued, 2 or 1; 0: not asked yet
  std::vector<int> slot_;                     // of each bin: its entry in opened_, or -1; empty if none is open
  std::vector<Opened> opened_;
  std::vector<double> t_, t_w_, t_s_; // values of opened bins, and prefix sums within each
};

} // namespace lc::cpu::kmeans
