// Internal to kmeans1d: from a codebook down to a local optimum, on the distribution of the data.
#pragma once
#include "kmeans1d_mass.h"

namespace lc::cpu::kmeans {

using Codebook = std::vector<double>; // ascending, in t

class Descent {
public:
  /// `pinned`: codewords that do not move, ascending, in t. `max_iter`: of both methods together.
  Descent(Mass& mass, const std::vector<Chunk>& chunks, int max_iter) : mass_(mass), chunks_(chunks), left_(max_iter) {}

  std::vector<double> pinned;
  double distortion = 0; // about that of the solution: what the tolerances are parts of
  int64_t iterations = 0;

  /// Lloyd with momentum until an iteration falls by less than `tol` of the distortion, on what is known of the bins.
  Codebook accelerated(Codebook codebook, double tol);

  /// Lloyd to the end, opening what the boundaries rest on.
  Codebook exact(Codebook codebook, double tol);

  /// Opens the bins that hold a boundary. Returns whether there are any.
  bool open_boundaries(const Codebook& codebook);

  /// Distortion, up to sign and a constant: the higher the better.
  double gain(const Codebook& codebook);

  /// What the gain may be off by because of the closed bins that hold a boundary.
  double gain_error(const Codebook& codebook) const;

  /// Whether a boundary goes through this closed bin.
  bool splits(const Codebook& codebook, int bin) const;

  /// Whether to take a codeword from where it is worth the least and to split the cell that gains the most would lower
  /// the distortion: then the codebook is a poor local optimum.
  bool misplaced(const Codebook& codebook);

private:
  struct Cells {
    std::vector<double> w, s;
    std::vector<int> closed; // bins that hold a boundary and are not open
  };
  void fill_cells(const Codebook& codebook, Cells& cells) const;
  static double gain(const Codebook& codebook, const Cells& cells);
  bool is_pinned(double t) const;
  void means(const Codebook& codebook, const Cells& cells, Codebook& out) const;
  double fall_to(const Codebook& next, const Codebook& codebook) const;

  Mass& mass_;
  const std::vector<Chunk>& chunks_;
  int left_;
  Cells cells_, others_;
};

} // namespace lc::cpu::kmeans
