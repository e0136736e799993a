// Internal to kmeans1d: the pass that assigns the codes.
#pragma once
#include "kmeans1d_mass.h"

namespace lc::cpu::kmeans {

/// Assigns the codes of an ascending codebook to all parts of a problem, packed as the options say, if `keep`. `grid`:
/// one that all values are on, or null. Returns the distortion; `exact`: all of it in double.
double label_parts(const Kmeans1dProblem& problem, const Kmeans1dOptions& options, const std::vector<float>& codebook,
                   const Kmeans1dGrid* grid, bool exact, bool keep);

} // namespace lc::cpu::kmeans
