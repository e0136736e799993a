// A sample of the scores gives a bracket that holds the kappa-th largest almost surely. One pass writes the codes and
// lists the positions of the scores above the bracket's lower end; the threshold is selected among those inside, and
// the survivors are written. If the bracket missed, everything is listed.
#include "codebook_plus_sparse.h"

#include "assign.h"
#include "parallel.h"
#include "select.h"

namespace lc::cpu {
namespace {

struct Listed {
  std::vector<uint16_t> sure, at;       // positions above the bracket, and inside
  std::vector<double> scores;           // of those inside
  double rest = 0;                      // scores that were not listed, later also those that do not survive
  int64_t above = 0, ties = 0;          // of those inside: above the threshold, at it
  int64_t first_tie = 0, first_out = 0; // ties and survivors in earlier pieces
  ListStatus status = ListStatus::ok;
};

class Corrector {
public:
  Corrector(std::vector<Piece> pieces, int64_t n, const float* codebook, int k, int64_t kappa)
      : pieces_(std::move(pieces)), n_(n), codebook_(codebook), k_(k), kappa_(kappa), listed_(pieces_.size()) {
    midpoints(codebook, k, mids_);
  }

  ListStatus solve(int64_t* indices, float* values, double* distortion) {
    Bracket bracket;
    if (kappa_ == 0)
      bracket.low = bracket.high;
    else if (n_ >= kSmallest)
      bracket = sampled();
    const ListStatus status = run_pass(bracket);
    if (status != ListStatus::ok) return status;
    if (!select()) {
      run_pass({});
      select();
    }
    write(indices, values);
    *distortion = 0;
    for (const Listed& list : listed_) *distortion += list.rest;
    return ListStatus::ok;
  }

private:
  static constexpr double kInfinity = std::numeric_limits<double>::infinity();

  Bracket sampled() const {
    return sampled_bracket(pieces_, n_, kappa_, [&](const Sample& sample, double* scores) {
      LC_DISPATCH(correction_scores)
      (sample.x.data(), sample.weights(), int64_t(sample.x.size()), mids_, codebook_, k_, scores);
    });
  }

  template <class F> void for_each_piece(const F& f) {
    parallel_for(int64_t(pieces_.size()), 1,
                 [&](int64_t p, int64_t, int64_t) { f(pieces_[size_t(p)], listed_[size_t(p)]); });
  }

  ListStatus run_pass(Bracket bracket) {
    const auto kernel = LC_DISPATCH(correction_pass);
    for_each_piece([&](const Piece& piece, Listed& list) {
      thread_local uint16_t sure[kPiece], at[kPiece];
      thread_local double scores[kPiece];
      const CorrectionCounts counts = kernel(piece.x, piece.h, piece.n, mids_, codebook_, k_, bracket.low, bracket.high,
                                             piece.codes, sure, at, scores);
      list.sure.assign(sure, sure + counts.sure);
      list.at.assign(at, at + counts.listed);
      list.scores.assign(scores, scores + counts.listed);
      list.rest = counts.rest;
      list.status = status_of(counts);
    });
    return first_failure(listed_);
  }

  // The threshold, among the scores in the bracket. False if the bracket was no good.
  bool select() {
    int64_t wanted = kappa_;
    std::vector<double> scores;
    for (const Listed& list : listed_) {
      wanted -= int64_t(list.sure.size());
      scores.insert(scores.end(), list.scores.begin(), list.scores.end());
    }
    threshold_ = kInfinity;
    if (wanted < 0 || wanted > int64_t(scores.size())) return false;
    if (wanted > 0) {
      std::nth_element(scores.begin(), scores.begin() + (wanted - 1), scores.end(), std::greater<>());
      threshold_ = scores[size_t(wanted - 1)];
    }
    return true;
  }

  void write(int64_t* indices, float* values) {
    int64_t quota = kappa_; // ties that survive
    for (Listed& list : listed_) {
      for (const double score : list.scores) list.above += score > threshold_, list.ties += score == threshold_;
      quota -= int64_t(list.sure.size()) + list.above;
    }
    int64_t out = 0, ties = 0;
    for (Listed& list : listed_) {
      list.first_tie = ties, list.first_out = out + std::min(ties, quota);
      out += int64_t(list.sure.size()) + list.above, ties += list.ties;
    }
    for_each_piece([&](const Piece& piece, Listed& list) {
      int64_t tie = list.first_tie, to = list.first_out;
      const auto put = [&](uint16_t at) {
        if (indices) indices[to] = piece.first + at;
        if (values) values[to] = piece.x[at] - nearest(piece, at);
        ++to;
      };
      size_t s = 0; // the two lists, merged
      for (size_t i = 0; i < list.at.size(); ++i) {
        while (s < list.sure.size() && list.sure[s] < list.at[i]) put(list.sure[s++]);
        const double score = list.scores[i];
        if (score > threshold_ || (score == threshold_ && tie++ < quota))
          put(list.at[i]);
        else
          list.rest += score;
      }
      while (s < list.sure.size()) put(list.sure[s++]);
    });
  }

  float nearest(const Piece& piece, uint16_t at) const {
    return codebook_[piece.codes ? piece.codes[at] : std::lower_bound(mids_, mids_ + k_ - 1, piece.x[at]) - mids_];
  }

  const std::vector<Piece> pieces_;
  const int64_t n_;
  const float* codebook_;
  const int k_;
  const int64_t kappa_;
  float mids_[256];
  std::vector<Listed> listed_;
  double threshold_ = 0;
};

} // namespace

ListStatus codebook_plus_sparse(const std::vector<const float*>& x, const std::vector<const float*>& h,
                                const std::vector<int64_t>& n, const float* codebook, int k, int64_t kappa,
                                const std::vector<uint8_t*>& codes, int64_t* indices, float* values,
                                double* distortion) {
  int64_t total = 0;
  for (int64_t size : n) total += size;
  return Corrector(pieces_of(x, h, n, codes), total, codebook, k, kappa).solve(indices, values, distortion);
}

} // namespace lc::cpu
