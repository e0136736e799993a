// How a problem is solved:
//   1. Mass. Up to 4096 distinct values, if there seem to be few: those. Otherwise one pass over the data makes a
//      histogram of counts and sums on a grid that is linear in the bulk and logarithmic in the tails.
//   2. Start. The given codebook, or the optimal partition of the values, of the bins, or of groups of bins. A bin so
//      wide and heavy that its inside matters (a spike, or the bin of an outlier) is opened first.
//   3. Lloyd on prefix sums, O(k) an iteration. Inside a closed bin that holds a boundary the density is taken as
//      linear, and the iterations are accelerated. Where the result is to be exact, those bins are opened then, and
//      Lloyd goes on until nothing moves.
//   4. One more pass assigns the codes and sums the distortion.
#include "kmeans1d.h"

#include <algorithm>
#include <cmath>

#include "kmeans1d_descent.h"
#include "kmeans1d_labels.h"
#include "kmeans1d_start.h"
#include "parallel.h"

namespace lc::cpu {
namespace kmeans {
namespace {

constexpr int64_t kPolished = 1 << 16; // up to so many values `automatic` ends with exact iterations
constexpr int kMaxDistinct = 4096;
constexpr int kMaxRounds = 3; // of opening what is heavy, in a cold start

class Solver {
public:
  Solver(const Kmeans1dProblem& problem, const Kmeans1dOptions& options, Mass& mass)
      : p_(problem), o_(options), mass_(mass), descent_(mass, chunks_, options.max_iter) {
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
    for (int i = 0; i < o_.pinned_count; ++i) descent_.pinned.push_back(double(o_.pinned[i]) - mass_.center);
    if (!mass_.binned && settled()) return Kmeans1dStatus::ok;

    if (!o_.warm) {
      write(descend(find_start()));
      return Kmeans1dStatus::ok;
    }
    Codebook given;
    for (int c = 0; c < o_.k; ++c) given.push_back(double(p_.codebook[c]) - mass_.center);
    write_better(given, from_start(given));
    return Kmeans1dStatus::ok;
  }

private:
  // ---- mass --------------------------------------------------------------------------------------------------

  Kmeans1dStatus take_mass() {
    const auto bad = [&] { return mass_.finite ? Kmeans1dStatus::bad_weights : Kmeans1dStatus::not_finite; };
    const bool small = n_ <= Mass::kSmall && chunks_.size() == 1;
    const bool optimal = o_.method == Kmeans1dMethod::optimal;
    if (small || optimal || seems_discrete()) {
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
    const int half = int(std::clamp<int64_t>(n_ / (optimal ? 2 : 8), o_.k > 8 ? 256 : 128, most));
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

  // ---- start -------------------------------------------------------------------------------------------------

  // Opens the bins that hide too much, if there are any; of those, only where a boundary of a codebook in `within`
  // goes, if there are such: weights that lie close about the codewords they start from need not be sorted each time.
  bool open_heavy(int round, std::initializer_list<const Codebook*> within = {}) {
    // Of few values that end on exact iterations a look inside would cost more than all the rest.
    const bool few = n_ <= 4096 && o_.method == Kmeans1dMethod::automatic;
    const double negligible = (few ? 1e-2 : 1e-3) * descent_.distortion;
    if (round == kMaxRounds || !mass_.hides(negligible)) return false;
    std::vector<int> heavy = mass_.heavy_bins(negligible);
    if (within.size())
      std::erase_if(heavy, [&](int bin) {
        return std::none_of(within.begin(), within.end(), [&](auto* c) { return descent_.splits(*c, bin); });
      });
    if (heavy.empty()) return false;
    mass_.open(chunks_, heavy);
    return polished_ = true;
  }

  Codebook descend(Codebook codebook) {
    if (mass_.binned) codebook = descent_.accelerated(std::move(codebook), polished_ ? 1e-6 : 1e-10);
    return polished_ ? descent_.exact(std::move(codebook), o_.tol) : codebook;
  }

  // Fewer groups for few values, where the partition would cost more than the passes over the data.
  int group_limit() const {
    const int64_t k = o_.k;
    return int(std::clamp<int64_t>(n_ / 16, 6 * k, std::clamp<int64_t>(32 * k, 256, 3072)));
  }

  static std::vector<Atom>& atoms() {
    static thread_local std::vector<Atom> buffer;
    return buffer;
  }

  // The optimal partition; beside a given codebook, if there is one.
  Codebook find_start(const Codebook* given = nullptr) {
    const bool optimal = o_.method == Kmeans1dMethod::optimal;
    for (int round = 0;; ++round) {
      mass_.atoms(atoms());
      if (!optimal && n_ > Mass::kSmall)
        group_atoms(atoms(), round || !mass_.binned ? 2 * group_limit() : group_limit());
      Codebook codebook = partition(atoms(), o_.k);
      descent_.distortion = distortion_of(atoms(), codebook);
      if (given ? open_heavy(round, {given, &codebook}) : open_heavy(round)) continue;
      if (optimal) least_ = descent_.distortion, hidden_ = mass_.hidden();
      pin(codebook);
      return codebook;
    }
  }

  // Where the optimal partition costs as much as a pass over the data, a start with few codewords does without, unless
  // a codeword is wasted. Otherwise the better of the two starts.
  Codebook from_start(const Codebook& given) {
    constexpr int kFew = 32;
    if (o_.method == Kmeans1dMethod::automatic && n_ <= kPolished && o_.k <= kFew) {
      int round = 0;
      do {
        mass_.atoms(atoms());
        descent_.distortion = distortion_of(atoms(), given);
      } while (open_heavy(round++, {&given}));
      Codebook codebook = descend(given);
      if (!descent_.misplaced(codebook)) return codebook;
      Codebook cold = descend(find_start(&given));
      return descent_.gain(cold) > descent_.gain(codebook) ? cold : codebook;
    }
    const Codebook start = find_start(&given);
    return descend(descent_.gain(given) >= descent_.gain(start) ? given : start);
  }

  // Each pinned codeword takes the place of the nearest that is not pinned.
  void pin(Codebook& codebook) const {
    const std::vector<double>& pins = descent_.pinned;
    while (codebook.size() < pins.size()) codebook.push_back(codebook.back());
    std::vector<bool> taken(codebook.size());
    for (double value : pins) {
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
    const std::vector<double>& pins = descent_.pinned;
    std::vector<float> values;
    for (int c = 0; c < o_.k; ++c) {
      const double t = codebook[std::min(size_t(c), codebook.size() - 1)];
      const auto at = std::lower_bound(pins.begin(), pins.end(), t);
      const bool pinned = at != pins.end() && *at == t;
      values.push_back(pinned ? o_.pinned[at - pins.begin()] : float(t + mass_.center));
    }
    std::sort(values.begin(), values.end());
    return values;
  }

  void write(const Codebook& codebook) const { write(rounded(codebook)); }

  // The start, unless the other is better for sure, also after rounding to float. Where the bins cannot tell, the data
  // are asked, if it may be worth the pass.
  void write_better(const Codebook& given, Codebook codebook) {
    const std::vector<float> start(p_.codebook, p_.codebook + o_.k);
    std::vector<float> values = rounded(codebook);
    if (surely_better(values, given)) return write(values);
    if (polished_) {
      if (descent_.open_boundaries(given) && surely_better(values, given)) return write(values);
      values = rounded(descent_.exact(given, o_.tol));
      return write(surely_better(values, given) ? values : start);
    }
    const bool worth_it = gain_over(values, given) > 1e-3 * descent_.distortion;
    write(worth_it && label(values, false) < label(start, false) * (1 - 1e-7) ? values : start);
  }

  Codebook in_t(const std::vector<float>& values) const {
    Codebook codebook;
    for (float value : values) codebook.push_back(double(value) - mass_.center);
    return codebook;
  }

  double gain_over(const std::vector<float>& values, const Codebook& given) {
    return descent_.gain(in_t(values)) - descent_.gain(given);
  }

  bool surely_better(const std::vector<float>& values, const Codebook& given) {
    return gain_over(values, given) >
           descent_.gain_error(in_t(values)) + descent_.gain_error(given) + 1e-8 * descent_.distortion;
  }

  void write(const std::vector<float>& codebook) const {
    std::copy(codebook.begin(), codebook.end(), p_.codebook);
    *p_.iterations = descent_.iterations;
    *p_.distortion = label(codebook, true);
    if (p_.excess_bound) *p_.excess_bound = excess_bound(codebook, *p_.distortion);
  }

  // For no codebook is the distortion of the data less than that of the atoms by more than for another one, but for
  // what `hidden_` says: so if this codebook is nearly optimal for the atoms, it is for the data.
  double excess_bound(const std::vector<float>& codebook, double distortion) const {
    if (distortion == 0) return 0;
    if (o_.method != Kmeans1dMethod::optimal) return INFINITY;
    const double above = distortion_of(atoms(), in_t(codebook)) - least_ + hidden_.in_bins +
                         4 * std::sqrt(distortion) * hidden_.by_rounding + hidden_.in_sums;
    return above < distortion ? std::max(above, 0.0) / (distortion - above) : INFINITY;
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
  Descent descent_;
  int64_t n_ = 0;
  bool polished_;
  double least_ = 0;      // in `optimal`: the least distortion of the atoms
  Mass::Hidden hidden_{}; // and what they leave open
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
