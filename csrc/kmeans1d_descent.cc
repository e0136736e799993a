#include "kmeans1d_descent.h"

#include <algorithm>
#include <cfloat>
#include <cmath>

namespace lc::cpu::kmeans {

namespace {
constexpr int kMaxOpenings = 8; // passes over the data to open bins
} // namespace

bool Descent::splits(const Codebook& codebook, int bin) const {
  for (size_t c = 0; c + 1 < codebook.size(); ++c) {
    int closed = -1;
    mass_.below((codebook[c] + codebook[c + 1]) / 2, &closed);
    if (closed == bin) return true;
  }
  return false;
}

void Descent::fill_cells(const Codebook& codebook, Cells& cells) const {
  const size_t k = codebook.size();
  cells.w.resize(k), cells.s.resize(k), cells.closed.clear();
  double w = 0, s = 0;
  for (size_t c = 0; c < k; ++c) {
    int closed = -1;
    const Sums end = c + 1 < k ? mass_.below((codebook[c] + codebook[c + 1]) / 2, &closed) : mass_.total();
    if (closed >= 0) cells.closed.push_back(closed);
    cells.w[c] = end.w - w, cells.s[c] = end.s - s;
    w = end.w, s = end.s;
  }
}

double Descent::gain(const Codebook& codebook, const Cells& cells) {
  double total = 0;
  for (size_t c = 0; c < codebook.size(); ++c) total += codebook[c] * (2 * cells.s[c] - codebook[c] * cells.w[c]);
  return total;
}

double Descent::gain(const Codebook& codebook) {
  fill_cells(codebook, others_);
  return gain(codebook, others_);
}

double Descent::gain_error(const Codebook& codebook) const {
  double error = 0;
  for (size_t c = 0; c + 1 < codebook.size(); ++c)
    error += 2 * (codebook[c + 1] - codebook[c]) * mass_.doubt((codebook[c] + codebook[c + 1]) / 2);
  return error;
}

bool Descent::is_pinned(double t) const {
  return !pinned.empty() && std::binary_search(pinned.begin(), pinned.end(), t);
}

// What a step of Lloyd from one codebook to another lowers the distortion by, before the boundaries move.
double Descent::fall_to(const Codebook& next, const Codebook& codebook) const {
  double fall = 0;
  for (size_t c = 0; c < next.size(); ++c) fall += cells_.w[c] * (next[c] - codebook[c]) * (next[c] - codebook[c]);
  return fall;
}

// The means of the cells of `codebook`.
void Descent::means(const Codebook& codebook, const Cells& cells, Codebook& out) const {
  const size_t k = codebook.size();
  out.resize(k);
  for (size_t c = 0; c < k; ++c) {
    out[c] = codebook[c];
    if (!(cells.w[c] > 0) || is_pinned(codebook[c])) continue; // an empty cell keeps its codeword
    // A cell that weighs next to nothing beside the others has a mean of rounding errors: keep it in its cell.
    const double left = c ? (codebook[c - 1] + codebook[c]) / 2 : -DBL_MAX;
    const double right = c + 1 < k ? (codebook[c] + codebook[c + 1]) / 2 : DBL_MAX;
    out[c] = std::clamp(cells.s[c] / cells.w[c], left, right);
  }
}

// Nesterov's momentum, started afresh where the gain falls; the last two iterations without.
Codebook Descent::accelerated(Codebook x, double tol) {
  const int most = std::clamp(int(2048 / x.size()), 20, 128), limit = std::min(left_, most);
  Codebook y = x, next;
  double last = -DBL_MAX;
  int speed = 0;
  for (int i = 0; i < limit; ++i) {
    fill_cells(y, cells_);
    const double now = gain(y, cells_);
    if (now < last) speed = 0;
    last = now;
    means(y, cells_, next);
    --left_, ++iterations;
    const double fall = fall_to(next, y);
    if (fall <= tol * distortion || i >= limit - 2) {
      x = y = next;
      if (fall <= tol * distortion) break;
      continue;
    }
    const double momentum = double(speed) / (speed + 3);
    ++speed;
    bool ascending = true;
    for (size_t c = 0; c < y.size(); ++c) {
      y[c] = next[c] + (is_pinned(next[c]) ? 0 : momentum * (next[c] - x[c]));
      ascending &= !c || y[c] >= y[c - 1];
    }
    if (!ascending) y = next, speed = 0;
    x = next;
  }
  return x;
}

Codebook Descent::exact(Codebook codebook, double tol) {
  Codebook next;
  for (int openings = 0;; ++openings) {
    fill_cells(codebook, cells_);
    for (; left_ > 0 && (cells_.closed.empty() || openings == kMaxOpenings); --left_, ++iterations) {
      means(codebook, cells_, next);
      const double fall = fall_to(next, codebook);
      const bool moved = next != codebook;
      codebook.swap(next);
      fill_cells(codebook, cells_);
      if (!moved || fall < tol * distortion) break;
    }
    if (cells_.closed.empty() || openings == kMaxOpenings) return codebook;
    mass_.open(chunks_, cells_.closed);
  }
}

bool Descent::open_boundaries(const Codebook& codebook) {
  fill_cells(codebook, cells_);
  if (!cells_.closed.empty()) mass_.open(chunks_, cells_.closed);
  return !cells_.closed.empty();
}

bool Descent::misplaced(const Codebook& codebook) {
  const size_t k = codebook.size();
  fill_cells(codebook, cells_);
  double most = 0, least = DBL_MAX; // gain of a split, cost of a merger
  double w = 0, s = 0;              // below the cell
  for (size_t c = 0; c < k; ++c) {
    const double cell_w = cells_.w[c], cell_s = cells_.s[c];
    int closed;
    const Sums middle = mass_.below(codebook[c], &closed);
    const double left_w = middle.w - w, left_s = middle.s - s, right_w = cell_w - left_w, right_s = cell_s - left_s;
    if (left_w > 0 && right_w > 0) {
      const double apart = right_s / right_w - left_s / left_w;
      most = std::max(most, left_w * right_w / cell_w * apart * apart);
    }
    if (c) {
      const double before_w = cells_.w[c - 1], both = before_w + cell_w;
      const double apart = before_w > 0 && cell_w > 0 ? cell_s / cell_w - cells_.s[c - 1] / before_w : 0;
      if (!is_pinned(codebook[c]) || !is_pinned(codebook[c - 1]))
        least = std::min(least, both > 0 ? before_w * cell_w / both * apart * apart : 0);
    }
    w += cell_w, s += cell_s;
  }
  return most > least;
}

} // namespace lc::cpu::kmeans
