// A sample of the scores gives a bracket that holds the kappa-th largest almost surely. One pass writes the codes and
// lists the positions of the scores above the bracket's lower end; the threshold is selected among those inside, and
// the survivors are written. If the bracket missed, everything is listed.
#include "codebook_plus_sparse.h"

#include <memory>

#include "assign.h"
#include "parallel.h"
#include "select.h"

namespace lc::cpu {
namespace {

constexpr int64_t kSmallest = 1 << 14; // below this, a sample is not worth its noise

struct Listed {
  std::vector<uint16_t> at;
  double rest = 0;       // scores that were not listed, later also those that do not survive
  int64_t above = 0;     // listed, and above the bracket or, later, the threshold
  int64_t ties = 0;      // at the threshold
  int64_t first_tie = 0; // ties in earlier pieces
  int64_t first_out = 0; // survivors in earlier pieces
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
      bracket = sampled_bracket();
    ListStatus status = run_pass(bracket.low);
    if (status != ListStatus::ok) return status;
    if (!select(bracket)) {
      run_pass(-kInfinity);
      select({});
    }
    write(indices, values);
    *distortion = 0;
    for (const Listed& list : listed_) *distortion += list.rest;
    return ListStatus::ok;
  }

private:
  static constexpr double kInfinity = std::numeric_limits<double>::infinity();

  Bracket sampled_bracket() const {
    const Sample sample = sample_of(pieces_, n_, std::clamp<int64_t>(n_ / 128, 4096, 16384));
    std::vector<double> scores(sample.x.size());
    LC_DISPATCH(correction_scores)
    (sample.x.data(), sample.h.empty() ? nullptr : sample.h.data(), int64_t(scores.size()), mids_, codebook_, k_,
     scores.data());
    return bracket_of(scores, n_, kappa_);
  }

  template <class F> void for_each_piece(const F& f) {
    parallel_for(int64_t(pieces_.size()), 1,
                 [&](int64_t p, int64_t, int64_t) { f(pieces_[size_t(p)], listed_[size_t(p)]); });
  }

  ListStatus run_pass(double low) {
    const auto kernel = LC_DISPATCH(correction_pass);
    for_each_piece([&](const Piece& piece, Listed& list) {
      const auto at = std::make_unique_for_overwrite<uint16_t[]>(size_t(piece.n));
      const CorrectionCounts counts =
          kernel(piece.x, piece.h, piece.n, mids_, codebook_, k_, low, piece.codes, at.get());
      list.at.assign(at.get(), at.get() + counts.listed);
      list.rest = counts.rest;
      list.status = !counts.finite      ? ListStatus::not_finite
                    : !counts.weighable ? ListStatus::bad_weights
                                        : ListStatus::ok;
    });
    for (const Listed& list : listed_)
      if (list.status != ListStatus::ok) return list.status;
    return ListStatus::ok;
  }

  struct Error {
    double score;
    float value;
  };

  Error error_at(const Piece& piece, uint16_t at) const {
    const float x = piece.x[at];
    const float q = codebook_[piece.codes ? piece.codes[at] : std::lower_bound(mids_, mids_ + k_ - 1, x) - mids_];
    const double d = double(x) - double(q);
    return {piece.h ? double(piece.h[at]) * (d * d) : d * d, x - q};
  }

  // The threshold, and what each piece has above and at it. False if the bracket was no good.
  bool select(Bracket bracket) {
    std::vector<std::vector<double>> inside(pieces_.size());
    parallel_for(int64_t(pieces_.size()), 1, [&](int64_t p, int64_t, int64_t) {
      Listed& list = listed_[size_t(p)];
      list.above = 0;
      for (const uint16_t at : list.at) {
        const double score = error_at(pieces_[size_t(p)], at).score;
        if (score > bracket.high)
          ++list.above;
        else
          inside[size_t(p)].push_back(score);
      }
    });
    int64_t wanted = kappa_;
    std::vector<double> scores;
    for (size_t p = 0; p < pieces_.size(); ++p) {
      wanted -= listed_[p].above;
      scores.insert(scores.end(), inside[p].begin(), inside[p].end());
    }
    threshold_ = kInfinity;
    if (kappa_ > 0) {
      if (wanted < 1 || wanted > int64_t(scores.size())) return false;
      std::nth_element(scores.begin(), scores.begin() + (wanted - 1), scores.end(), std::greater<>());
      threshold_ = scores[size_t(wanted - 1)];
    }
    return true;
  }

  void write(int64_t* indices, float* values) {
    for_each_piece([&](const Piece& piece, Listed& list) {
      list.above = list.ties = 0;
      for (const uint16_t at : list.at) {
        const double score = error_at(piece, at).score;
        list.above += score > threshold_, list.ties += score == threshold_;
      }
    });
    int64_t above = 0, ties = 0;
    for (const Listed& list : listed_) above += list.above;
    const int64_t quota = kappa_ - above; // ties that survive
    above = 0;
    for (Listed& list : listed_) {
      list.first_tie = ties, list.first_out = above + std::min(ties, quota);
      above += list.above, ties += list.ties;
    }
    for_each_piece([&](const Piece& piece, Listed& list) {
      int64_t tie = list.first_tie, out = list.first_out;
      for (const uint16_t at : list.at) {
        const Error error = error_at(piece, at);
        if (error.score > threshold_ || (error.score == threshold_ && tie++ < quota)) {
          if (indices) indices[out] = piece.first + at;
          if (values) values[out] = error.value;
          ++out;
        } else {
          list.rest += error.score;
        }
      }
    });
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
