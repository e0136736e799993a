// One pass decides on all benefits of a nonzero outside a bracket that a sample gives, and lists those inside; the
// threshold is selected among them.
#include <memory>

#include "assign.h"
#include "parallel.h"
#include "select.h"
#include "sparse_codebook.h"

namespace lc::cpu {
namespace {

constexpr double kNone = std::numeric_limits<double>::denorm_min(); // the least benefit that counts
constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Listed {
  std::vector<uint16_t> at;
  std::vector<double> scores;
  std::unique_ptr<uint8_t[]> codes; // where the caller wants none
  double distortion = 0;
  int64_t above = 0;
  ListStatus status = ListStatus::ok;
};

class Chooser {
public:
  Chooser(std::vector<Piece> pieces, int64_t n, const float* codebook, int k, int64_t kappa)
      : pieces_(std::move(pieces)), n_(n), codebook_(codebook), k_(k), kappa_(kappa), listed_(pieces_.size()) {
    midpoints(codebook, k, mids_);
  }

  ListStatus solve(double* distortion, int64_t* used) {
    Bracket bracket{kNone, kInfinity};
    if (kappa_ == 0)
      bracket.low = kInfinity;
    else if (n_ >= kSmallest)
      bracket = sampled();
    const ListStatus status = run_pass(bracket);
    if (status != ListStatus::ok) return status;
    if (!select(bracket)) {
      bracket = {kNone, kInfinity};
      run_pass(bracket);
      select(bracket);
    }
    *distortion = 0, *used = 0;
    for (const Listed& list : listed_) *distortion += list.distortion, *used += list.above;
    return ListStatus::ok;
  }

private:
  Bracket sampled() const {
    Bracket bracket = sampled_bracket(pieces_, n_, kappa_, [&](const Sample& sample, double* scores) {
      LC_DISPATCH(support_scores)
      (sample.x.data(), sample.weights(), int64_t(sample.x.size()), mids_, codebook_, k_, scores);
    });
    bracket.low = std::max(bracket.low, kNone), bracket.high = std::max(bracket.high, kNone);
    return bracket;
  }

  ListStatus run_pass(Bracket bracket) {
    const auto kernel = LC_DISPATCH(support_pass);
    parallel_for(int64_t(pieces_.size()), 1, [&](int64_t p, int64_t, int64_t) {
      Piece& piece = pieces_[size_t(p)];
      Listed& list = listed_[size_t(p)];
      if (!piece.codes) {
        list.codes = std::make_unique_for_overwrite<uint8_t[]>(size_t(piece.n));
        piece.codes = list.codes.get();
      }
      thread_local uint16_t at[kPiece];
      thread_local double scores[kPiece];
      const SupportCounts counts =
          kernel(piece.x, piece.h, piece.n, mids_, codebook_, k_, bracket.low, bracket.high, piece.codes, at, scores);
      list.at.assign(at, at + counts.listed);
      list.scores.assign(scores, scores + counts.listed);
      list.distortion = counts.rest, list.above = counts.above;
      list.status = status_of(counts);
    });
    return first_failure(listed_);
  }

  // Decides on the listed entries. False, with nothing changed, if the bracket was no good.
  bool select(Bracket bracket) {
    int64_t wanted = kappa_, number = 0;
    for (const Listed& list : listed_) wanted -= list.above, number += int64_t(list.at.size());
    // Fewer than wanted: all of them, if the bracket reached down to no benefit at all.
    if (wanted < 0 || (number < wanted && bracket.low > kNone)) return false;
    double threshold = kInfinity;
    if (number <= wanted) {
      threshold = 0;
    } else if (wanted > 0) {
      std::vector<double> scores;
      scores.reserve(size_t(number));
      for (const Listed& list : listed_) scores.insert(scores.end(), list.scores.begin(), list.scores.end());
      std::nth_element(scores.begin(), scores.begin() + (wanted - 1), scores.end(), std::greater<>());
      threshold = scores[size_t(wanted - 1)];
      int64_t higher = 0;
      for (const double score : scores) higher += score > threshold;
      wanted -= higher; // ties that survive
    }
    for (size_t p = 0; p < pieces_.size(); ++p) {
      const Piece& piece = pieces_[p];
      Listed& list = listed_[p];
      for (size_t i = 0; i < list.at.size(); ++i) {
        const uint16_t at = list.at[i];
        const double score = list.scores[i], h = piece.h ? double(piece.h[at]) : 1.0, x = piece.x[at];
        const bool in = score > threshold || (score == threshold && wanted-- > 0);
        const double d = x - (in ? double(codebook_[piece.codes[at] - 1]) : 0.0);
        list.distortion += h * (d * d), list.above += in;
        if (!in) piece.codes[at] = 0;
      }
    }
    return true;
  }

  std::vector<Piece> pieces_;
  const int64_t n_;
  const float* codebook_;
  const int k_;
  const int64_t kappa_;
  float mids_[256];
  std::vector<Listed> listed_;
};

} // namespace

ListStatus nearest_sparse(const std::vector<const float*>& x, const std::vector<const float*>& h,
                          const std::vector<int64_t>& n, const float* codebook, int k, int64_t kappa,
                          const std::vector<uint8_t*>& codes, double* distortion, int64_t* used) {
  int64_t total = 0;
  for (const int64_t size : n) total += size;
  return Chooser(pieces_of(x, h, n, codes), total, codebook, k, kappa).solve(distortion, used);
}

} // namespace lc::cpu
