#include "kmeans1d_start.h"

#include <algorithm>
#include <cmath>
#include <memory>

namespace lc::cpu::kmeans {
namespace {

// About the cube root, from a third of the exponent: within 6 %.
double rough_cube_root(double x) { return x > 0 ? double_of(bits_of(x) / 3 + 0x2a9f7893782da1ceu) : 0; }

double measure(const Atom& a) { return rough_cube_root(a.w * a.width * a.width); }

// Prefix sums over the atoms. An atom too light to show beside the others goes with the next one.
struct Prefix {
  std::vector<double> w, s;
  std::vector<int> first; // atom of each step
  int m;

  explicit Prefix(const std::vector<Atom>& atoms) : w(atoms.size() + 1), s(atoms.size() + 1), first(atoms.size() + 1) {
    double w_sum = 0, s_sum = 0;
    m = 0;
    for (size_t j = 0; j < atoms.size(); ++j) {
      w_sum += atoms[j].w, s_sum += atoms[j].s;
      if (w_sum == w[size_t(m)]) continue;
      ++m;
      w[size_t(m)] = w_sum, s[size_t(m)] = s_sum;
      first[size_t(m)] = int(j) + 1;
    }
    s[size_t(m)] = s_sum;
    first[size_t(m)] = int(atoms.size());
  }
};

// With a price on cells instead of their number, raised or lowered until there are k of them. The optimal distortion is
// convex in k, so a price for k exists, except in a tie. Returns false if none is found.
bool partition_by_price(const Prefix& p, int k, double total_measure, std::vector<int>& ends) {
  const auto kernel = LC_DISPATCH(kmeans1d_priced_partition);
  const auto f = std::make_unique_for_overwrite<double[]>(size_t(p.m + 1));
  const auto split = std::make_unique_for_overwrite<int[]>(size_t(p.m + 1)),
             cells = std::make_unique_for_overwrite<int[]>(size_t(p.m + 1));
  // By Panter and Dite the distortion is measure^3 / (12 k^2); the price of a cell is its derivative.
  const double wanted = std::log(double(k));
  double price = std::log(total_measure * total_measure * total_measure / 6) - 3 * wanted;
  double low = 0, high = 0, low_cells = -1, high_cells = -1; // prices with too many and too few cells; and log cells
  for (int pass = 0; pass < 24; ++pass) {
    const int got = kernel(p.w.data(), p.s.data(), p.m, std::exp(price), f.get(), split.get(), cells.get());
    if (got == k) {
      ends.assign(size_t(k), p.m);
      for (int c = k - 1, j = p.m; c > 0; --c) ends[size_t(c - 1)] = j = split[j];
      return true;
    }
    const double got_log = std::log(double(got));
    if (got > k)
      low = price, low_cells = got_log;
    else
      high = price, high_cells = got_log;
    if (low_cells >= 0 && high_cells >= 0) {
      const double t = pass > 8 ? 0.5 : std::clamp((low_cells - wanted) / (low_cells - high_cells), 0.1, 0.9);
      price = low + t * (high - low);
    } else {
      price += 3 * (got_log - wanted) + (got > k ? 0.02 : -0.02);
    }
  }
  return false;
}

} // namespace

void group_atoms(std::vector<Atom>& atoms, int limit) {
  if (int(atoms.size()) <= limit) return;
  static thread_local std::vector<double> measures;
  measures.resize(atoms.size());
  double total = 0, most = 0;
  for (size_t j = 0; j < atoms.size(); ++j) {
    const double m = measures[j] = measure(atoms[j]);
    total += m, most = std::max(most, m);
  }
  if (!(total > 0) || !(total <= 1e300)) return;
  // An outlier, or the far side of a gap, would take most of the groups: an atom counts at most one group.
  double step = total / limit;
  for (int round = 0; round < 8 && most > 1.01 * step; ++round) {
    total = 0;
    for (double m : measures) total += std::min(m, step);
    most = step;
    step = total / limit;
  }
  size_t out = 0;
  double seen = 0, next = step;
  Atom group{0, 0, 0};
  for (size_t j = 0; j < atoms.size(); ++j) {
    const double m = std::min(measures[j], step);
    // Begin a new group where this one is full, and always across a gap that is worth one.
    if (j && (m == step || seen + m / 2 > next)) {
      atoms[out++] = group;
      group = {0, 0, 0};
      if (m == step) next = seen + step;
      while (seen + m / 2 > next) next += step;
    }
    group.w += atoms[j].w, group.s += atoms[j].s, group.width += atoms[j].width;
    seen += m;
  }
  atoms[out++] = group;
  atoms.resize(out);
}

std::vector<double> partition(const std::vector<Atom>& atoms, int k) {
  const Prefix p(atoms);
  k = std::min(k, p.m);
  std::vector<int> ends(static_cast<size_t>(k));
  // Nanoseconds of either method, as measured; by price in some four passes.
  const double m = p.m, by_halves = m * (k - 2) * (4 + 0.8 * std::log2(m + 1)), by_price = 4 * m * (14 + 0.5 * m / k);
  double total = 0;
  if (by_price < by_halves)
    for (const Atom& a : atoms) total += measure(a);
  if (!(total > 0 && total < 1e100 && total > 1e-100 && partition_by_price(p, k, total, ends))) {
    const auto scratch = std::make_unique_for_overwrite<double[]>(2 * size_t(p.m + 1));
    const auto splits = std::make_unique_for_overwrite<int[]>(size_t(k) * size_t(p.m + 1));
    LC_DISPATCH(kmeans1d_partition)(p.w.data(), p.s.data(), p.m, k, scratch.get(), splits.get(), ends.data());
  }
  std::vector<double> codebook;
  codebook.reserve(size_t(k));
  for (int c = 0, begin = 0; c < k; begin = ends[size_t(c++)]) {
    double w = 0, s = 0; // not as a difference of prefix sums, which would cancel
    for (int j = p.first[size_t(begin)]; j < p.first[size_t(ends[size_t(c)])]; ++j)
      w += atoms[size_t(j)].w, s += atoms[size_t(j)].s;
    codebook.push_back(s / w);
  }
  std::sort(codebook.begin(), codebook.end()); // rounding may have swapped two that are all but equal
  return codebook;
}

double distortion_of(const std::vector<Atom>& atoms, const std::vector<double>& codebook) {
  double distortion = 0;
  size_t c = 0;
  for (const Atom& a : atoms) {
    const double mean = a.s / a.w;
    while (c + 1 < codebook.size() && (codebook[c] + codebook[c + 1]) / 2 < mean) ++c;
    distortion += a.w * (mean - codebook[c]) * (mean - codebook[c]);
  }
  return distortion;
}

} // namespace lc::cpu::kmeans
