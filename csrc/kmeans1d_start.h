// Internal to kmeans1d: the optimal partition of the atoms of a distribution, which is the cold start.
#pragma once
#include "kmeans1d_mass.h"

namespace lc::cpu::kmeans {

/// Merges atoms so that about `limit` or fewer remain, of equal density^(1/3), which is how an optimal quantizer spends
/// its codewords (Panter and Dite).
void group_atoms(std::vector<Atom>& atoms, int limit);

/// The means of the optimal partition of the atoms into k cells, or of the atoms themselves where they are fewer.
std::vector<double> partition(const std::vector<Atom>& atoms, int k);

/// sum of w (mean - nearest codeword)^2 over the atoms: a lower bound of the distortion, and near it if they are many.
double distortion_of(const std::vector<Atom>& atoms, const std::vector<double>& codebook);

} // namespace lc::cpu::kmeans
