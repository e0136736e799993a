// How a problem is solved:
//   1. Mass. Up to 4096 distinct values, if there seem to be few: those. Otherwise one pass over the data makes a
//      histogram of counts and sums on a grid that is linear in the bulk and logarithmic in the tails.
//   2. Start. The given codebook, or the optimal partition of the values, of the bins, or of groups of bins. A bin so
//      wide and heavy that its inside matters (a spike, or the bin of an outlier) is opened first; with a given
//      codebook only if a boundary goes through it, or weights that lie close about their codewords would be sorted
//      each time.
//   3. Lloyd on prefix sums, O(k) an iteration. Inside a closed bin that holds a boundary the density is taken as
//      linear, and the iterations are accelerated. Where the result is to be exact, those bins are opened then, and
//      Lloyd goes on until nothing moves.
//   4. One more pass assigns the codes and sums the distortion.
#include "kmeans1d.h"

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "kmeans1d_labels.h"
#include "kmeans1d_mass.h"
#include "kmeans1d_start.h"
#include "parallel.h"

namespace lc::cpu {
namespace kmeans {
namespace {

constexpr int64_t kPolished = 1 << 16; // up to so many values `automatic` ends with exact iterations
constexpr int kMaxDistinct = 4096;
constexpr int kMaxAtoms = 4096; // groups of atoms, once bins have been opened
constexpr int kMaxOpenings = 8; // passes over the data to open bins
constexpr int kMaxRounds = 3;   // of opening what is heavy, in a cold start

using Codebook = std::vector<double>; // ascending, in t

class Solver {
public:
  Solver(const Kmeans1dProblem& problem, const Kmeans1dOptions& options, Mass& mass)
      : p_(problem), o_(options), mass_(mass), left_(options.max_iter) {
    for (int64_t i = 0; i < p_.part_count; ++i) {
      const Kmeans1dPart& part = p_.parts[i];
      n_ += part.n;
      for (int64_t at = 0; at < part.n; at += kChunk)
        chunks_.push_back({part.x + at, part.h ? part.h + at : nullptr, std::min(kChunk, part.n - at)});
    }
    polished_ = o_.method != Kmeans1dMethod::automatic || n_ <= kPolished;
  }

  Kmeans1dStatus solve() {
    mass_.finite = true;
    if (const Kmeans1dStatus status = take_mass(); status != Kmeans1dStatus::ok) return status;
    for (int i = 0; i < o_.pinned_count; ++i) pinned_.push_back(double(o_.pinned[i]) - mass_.center);
    if (!mass_.binned && settled()) return Kmeans1dStatus::ok;

    if (!o_.warm) {
      write(descend(find_start({}), {}));
      return Kmeans1dStatus::ok;
    }
    Codebook given;
    for (int c = 0; c < o_.k; ++c) given.push_back(double(p_.codebook[c]) - mass_.center);
    const Codebook start = find_start(given);
    Codebook codebook = descend(start, polished_ ? given : Codebook{});
    if (polished_ && gain(codebook) < gain(given)) codebook = descend(given, given); // everything is exact by now
    write_better(given, codebook);
    return Kmeans1dStatus::ok;
  }

private:
  // ---- mass --------------------------------------------------------------------------------------------------

  Kmeans1dStatus take_mass() {
    const auto bad = [&] { return mass_.finite ? Kmeans1dStatus::bad_weights : Kmeans1dStatus::not_finite; };
    const bool small = n_ <= Mass::kSmall && chunks_.size() == 1;
    const bool optimal = o_.method == Kmeans1dMethod::optimal;
    if (small || (optimal && n_ <= kMaxDistinct) || seems_discrete()) {
      if (!weights_are_good()) return Kmeans1dStatus::bad_weights;
      if (small) {
        mass_.take_small(chunks_[0]);
        return mass_.finite ? Kmeans1dStatus::ok : Kmeans1dStatus::not_finite;
      }
      if (mass_.take_values(chunks_, n_, kMaxDistinct)) return Kmeans1dStatus::ok;
      if (!mass_.finite) return Kmeans1dStatus::not_finite;
    }
    // As many bins as cost little beside the pass over the data.
    const int64_t most = (optimal ? 24576 : o_.k > 16 ? 6144 : 3072) * (n_ >= 1 << 22 ? 2 : 1);
    const int half = int(std::clamp<int64_t>(n_ / 8, o_.k > 8 ? 256 : 128, most));
    if (!mass_.take_bins(chunks_, n_, half)) return bad();
    return mass_.total().w > 0 ? Kmeans1dStatus::ok : Kmeans1dStatus::bad_weights;
  }

  bool weights_are_good() const {
    if (!chunks_[0].h) return true;
    float most = 0;
    for (const Chunk& chunk : chunks_) {
      const auto range = LC_DISPATCH(kmeans1d_range)(chunk.h, chunk.size);
      if (!range.finite || range.low < 0) return false;
      most = std::max(most, range.high);
    }
    return most > 0;
  }

  // Whether a quarter of some values spread over the data are repetitions.
  bool seems_discrete() const {
    constexpr int kSlots = 4096;
    const int64_t count = n_ < kPolished ? 256 : 1024;
    static thread_local std::vector<uint32_t> slots;
    slots.assign(kSlots, 0xffffffff); // the bits of a NaN
    int distinct = 0;
    size_t chunk = 0;
    int64_t before = 0;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = i * n_ / count;
      while (before + chunks_[chunk].size <= at) before += chunks_[chunk++].size;
      const uint32_t b = bits_of(chunks_[chunk].x[at - before]);
      uint32_t slot = (b * 2654435761u) >> 20;
      while (slots[slot] != b && slots[slot] != 0xffffffff) slot = (slot + 1) % kSlots;
      distinct += slots[slot] != b;
      slots[slot] = b;
    }
    return distinct <= count - count / 4;
  }

  // A codeword for each distinct value, if there are enough: nothing to solve, and no rounding.
  bool settled() {
    std::vector<float> codebook(mass_.values);
    for (int i = 0; i < o_.pinned_count; ++i)
      if (std::find(codebook.begin(), codebook.end(), o_.pinned[i]) == codebook.end()) codebook.push_back(o_.pinned[i]);
    if (int(codebook.size()) > o_.k) return false;
    std::sort(codebook.begin(), codebook.end());
    codebook.resize(size_t(o_.k), codebook.back());
    write(codebook);
    return true;
  }

  // ---- Lloyd -------------------------------------------------------------------------------------------------

  struct Cells {
    std::vector<double> w, s;
    std::vector<int> closed; // bins that hold a boundary and are not open
  };

  void fill_cells(const Codebook& codebook, Cells& cells) const {
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

  static double gain(const Codebook& codebook, const Cells& cells) {
    double total = 0;
    for (size_t c = 0; c < codebook.size(); ++c) total += codebook[c] * (2 * cells.s[c] - codebook[c] * cells.w[c]);
    return total;
  }

  // Distortion, up to sign and a constant: the higher the better.
  double gain(const Codebook& codebook) const {
    Cells cells;
    fill_cells(codebook, cells);
    return gain(codebook, cells);
  }

  // What the gain may be off by because of the closed bins that hold a boundary.
  double gain_error(const Codebook& codebook) const {
    double error = 0;
    for (size_t c = 0; c + 1 < codebook.size(); ++c)
      error += 2 * (codebook[c + 1] - codebook[c]) * mass_.doubt((codebook[c] + codebook[c + 1]) / 2);
    return error;
  }

  bool is_pinned(double t) const { return std::binary_search(pinned_.begin(), pinned_.end(), t); }

  // The means of the cells of `codebook`.
  void means(const Codebook& codebook, const Cells& cells, Codebook& out) const {
    const size_t k = codebook.size();
    out.resize(k);
    for (size_t c = 0; c < k; ++c) {
      out[c] = codebook[c];
      if (!(cells.w[c] > 0) || (!pinned_.empty() && is_pinned(codebook[c])))
        continue; // an empty cell keeps its codeword
      // A cell that weighs next to nothing beside the others has a mean of rounding errors: keep it in its cell.
      const double left = c ? (codebook[c - 1] + codebook[c]) / 2 : -DBL_MAX;
      const double right = c + 1 < k ? (codebook[c] + codebook[c + 1]) / 2 : DBL_MAX;
      out[c] = std::clamp(cells.s[c] / cells.w[c], left, right);
    }
  }

  // Lloyd with Nesterov's momentum, started afresh where the gain falls, on what is known of the bins.
  Codebook accelerated(Codebook x) {
    const int limit = std::min(left_, 40);
    Codebook y = x, next;
    Cells cells;
    double last = -DBL_MAX;
    int speed = 0;
    const double enough = (polished_ ? 1e-6 : 1e-9) * distortion_;
    for (int i = 0; i < limit; ++i) {
      fill_cells(y, cells);
      const double now = gain(y, cells);
      if (now < last) speed = 0;
      last = now;
      means(y, cells, next);
      --left_, ++iterations_;
      double fall = 0;
      for (size_t c = 0; c < y.size(); ++c) fall += cells.w[c] * (next[c] - y[c]) * (next[c] - y[c]);
      if (fall <= enough || i >= limit - 2) { // the last two without momentum
        x = y = next;
        if (fall <= enough) break;
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

  // Lloyd to the end, opening what the boundaries rest on. `include`: a codebook whose boundaries are made exact too.
  Codebook exact(Codebook codebook, const Codebook& include) {
    Cells cells, others;
    Codebook next;
    for (int openings = 0;; ++openings) {
      fill_cells(codebook, cells);
      for (; left_ > 0 && (cells.closed.empty() || openings == kMaxOpenings); --left_, ++iterations_) {
        means(codebook, cells, next);
        double fall = 0, moved = 0;
        for (size_t c = 0; c < next.size(); ++c) {
          fall += cells.w[c] * (next[c] - codebook[c]) * (next[c] - codebook[c]);
          moved = std::max(moved, std::fabs(next[c] - codebook[c]));
        }
        codebook.swap(next);
        fill_cells(codebook, cells);
        if (moved == 0 || fall < o_.tol * distortion_) break;
      }
      std::vector<int> closed = cells.closed;
      if (!include.empty()) {
        fill_cells(include, others);
        closed.insert(closed.end(), others.closed.begin(), others.closed.end());
      }
      if (closed.empty() || openings == kMaxOpenings) return codebook;
      mass_.open(chunks_, closed);
    }
  }

  Codebook descend(Codebook codebook, const Codebook& include) {
    if (mass_.binned) codebook = accelerated(codebook);
    return polished_ || !include.empty() ? exact(codebook, include) : codebook;
  }

  // Whether a boundary goes through this closed bin.
  bool splits(const Codebook& codebook, int bin) const {
    for (size_t c = 0; c + 1 < codebook.size(); ++c) {
      int closed;
      mass_.below((codebook[c] + codebook[c + 1]) / 2, &closed);
      if (closed == bin) return true;
    }
    return false;
  }

  // ---- start -------------------------------------------------------------------------------------------------

  // What a bin may hide.
  double negligible() const { return 1e-3 * distortion_; }

  // Fewer groups for few values, where the partition would cost more than the passes over the data.
  int group_limit() const {
    const int64_t k = o_.k;
    return int(std::clamp<int64_t>(n_ / 16, 6 * k, std::clamp<int64_t>(32 * k, 256, 3072)));
  }

  // The optimal partition, or `given` if that is better. Sets distortion_ too.
  Codebook find_start(const Codebook& given) {
    static thread_local std::vector<Atom> atoms;
    for (int round = 0;; ++round) {
      mass_.atoms(atoms);
      if (o_.method != Kmeans1dMethod::optimal && n_ > Mass::kSmall)
        group_atoms(atoms, round || !mass_.binned ? 2 * group_limit() : group_limit());
      Codebook codebook = partition(atoms, o_.k);
      distortion_ = distortion_of(atoms, codebook);
      if (round < kMaxRounds && mass_.hides(negligible())) {
        std::vector<int> heavy = mass_.heavy_bins(negligible());
        if (!given.empty())
          std::erase_if(heavy, [&](int bin) { return !splits(codebook, bin) && !splits(given, bin); });
        if (!heavy.empty()) {
          mass_.open(chunks_, heavy);
          polished_ = true;
          continue;
        }
      }
      pin(codebook);
      return !given.empty() && gain(given) >= gain(codebook) ? given : codebook;
    }
  }

  // Each pinned codeword takes the place of the nearest that is not pinned.
  void pin(Codebook& codebook) const {
    while (codebook.size() < pinned_.size()) codebook.push_back(codebook.back());
    std::vector<bool> taken(codebook.size());
    for (double value : pinned_) {
      size_t nearest = codebook.size();
      for (size_t c = 0; c < codebook.size(); ++c)
        if (!taken[c] &&
            (nearest == codebook.size() || std::fabs(codebook[c] - value) < std::fabs(codebook[nearest] - value)))
          nearest = c;
      codebook[nearest] = value;
      taken[nearest] = true;
    }
    std::sort(codebook.begin(), codebook.end());
  }

  // ---- result ------------------------------------------------------------------------------------------------

  std::vector<float> rounded(const Codebook& codebook) const {
    std::vector<float> values;
    for (int c = 0; c < o_.k; ++c) {
      const double t = codebook[std::min(size_t(c), codebook.size() - 1)];
      const auto at = std::lower_bound(pinned_.begin(), pinned_.end(), t);
      const bool pinned = at != pinned_.end() && *at == t;
      values.push_back(pinned ? o_.pinned[at - pinned_.begin()] : float(t + mass_.center));
    }
    std::sort(values.begin(), values.end());
    return values;
  }

  void write(const Codebook& codebook) const { write(rounded(codebook)); }

  // The start, unless the other is better for sure, also after rounding to float. Where the bins cannot tell, the data
  // are asked, if it may be worth the pass.
  void write_better(const Codebook& given, const Codebook& codebook) const {
    const std::vector<float> start(p_.codebook, p_.codebook + o_.k), values = rounded(codebook);
    Codebook reached;
    for (float value : values) reached.push_back(double(value) - mass_.center);
    const double better = gain(reached) - gain(given),
                 sure = gain_error(reached) + gain_error(given) + 1e-8 * distortion_;
    if (better > sure) return write(values);
    write(better > 1e-3 * distortion_ && label(values, false) < label(start, false) * (1 - 1e-7) ? values : start);
  }

  void write(const std::vector<float>& codebook) const {
    std::copy(codebook.begin(), codebook.end(), p_.codebook);
    *p_.iterations = iterations_;
    *p_.distortion = label(codebook, true);
  }

  double label(const std::vector<float>& codebook, bool keep) const {
    bool exact = polished_ || !mass_.binned;
    if (!exact) { // squares in float are safe from overflow, and from what is lost near zero, on such scales only
      const double far =
          std::max(std::fabs(double(codebook[0]) - mass_.center), std::fabs(double(codebook.back()) - mass_.center));
      exact = !(mass_.grid.base > 0x1p-40f && mass_.grid.base < 0x1p20f && far < 0x1p50);
    }
    return label_parts(p_, o_, codebook, mass_.binned ? &mass_.grid : nullptr, exact, keep);
  }

  const Kmeans1dProblem& p_;
  const Kmeans1dOptions& o_;
  Mass& mass_;
  std::vector<Chunk> chunks_;
  int64_t n_ = 0;
  int left_;
  int64_t iterations_ = 0;
  bool polished_;
  double distortion_ = 0;
  std::vector<double> pinned_; // in t
};

} // namespace
} // namespace kmeans

void kmeans1d(const std::vector<Kmeans1dProblem>& batch, const Kmeans1dOptions& options,
              std::vector<Kmeans1dStatus>& status) {
  constexpr int64_t kLarge = 1 << 17; // large problems use all threads one after another, small ones a thread each
  status.assign(batch.size(), Kmeans1dStatus::ok);
  const auto solve = [&](size_t b) {
    static thread_local kmeans::Mass mass; // its buffers serve one problem after another
    status[b] = kmeans::Solver(batch[b], options, mass).solve();
  };
  std::vector<size_t> small;
  int64_t total = 0;
  for (size_t b = 0; b < batch.size(); ++b) {
    int64_t n = 0;
    for (int64_t i = 0; i < batch[b].part_count; ++i) n += batch[b].parts[i].n;
    if (n < kLarge)
      small.push_back(b), total += n;
    else
      solve(b);
  }
  if (small.empty()) return;
  const int64_t grain = std::max<int64_t>(1, int64_t(small.size()) * 8192 / std::max<int64_t>(total, 1));
  parallel_for(int64_t(small.size()), grain, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) solve(small[size_t(i)]);
  });
}

} // namespace lc::cpu
