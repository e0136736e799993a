// Lists of tensors cut into pieces, and the selection of their kappa highest scores without keeping all the scores.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace lc::cpu {

constexpr int64_t kPiece = 1 << 15;    // positions within a piece fit 16 bits
constexpr int64_t kSmallest = 1 << 14; // below this, a sample is not worth its noise

struct Piece {
  const float *x, *h; // h may be null
  int64_t n, first;   // values, and the index of the first through the list
  uint8_t* codes;     // may be null
};

inline std::vector<Piece> pieces_of(const std::vector<const float*>& x, const std::vector<const float*>& h,
                                    const std::vector<int64_t>& n, const std::vector<uint8_t*>& codes) {
  std::vector<Piece> pieces;
  int64_t first = 0;
  for (size_t t = 0; t < x.size(); ++t)
    for (int64_t at = 0; at < n[t]; at += kPiece) {
      const int64_t size = std::min(kPiece, n[t] - at);
      uint8_t* out = codes.empty() || !codes[t] ? nullptr : codes[t] + at;
      pieces.push_back({x[t] + at, h.empty() ? nullptr : h[t] + at, size, first, out});
      first += size;
    }
  return pieces;
}

/// About `size` values, and their weights, in lines of 16 at a stride; each line at a pseudo-random place within it.
struct Sample {
  std::vector<float> x, h;
  const float* weights() const { return h.empty() ? nullptr : h.data(); }
};

inline Sample sample_of(const std::vector<Piece>& pieces, int64_t n, int64_t size) {
  constexpr int64_t kLine = 16;
  Sample sample;
  uint32_t random = 12345;
  for (const Piece& piece : pieces) {
    const int64_t lines = std::max<int64_t>(1, size / kLine * piece.n / n), stride = piece.n / lines;
    for (int64_t line = 0; line < lines; ++line) {
      random = random * 1664525u + 1013904223u;
      const int64_t room = std::max<int64_t>(1, stride - kLine + 1);
      const int64_t begin = line * stride + int64_t((uint64_t(random) * uint64_t(room)) >> 32);
      const int64_t end = std::min(begin + kLine, piece.n);
      sample.x.insert(sample.x.end(), piece.x + begin, piece.x + end);
      if (piece.h) sample.h.insert(sample.h.end(), piece.h + begin, piece.h + end);
    }
  }
  return sample;
}

/// The kappa-th highest score of n lies in [low, high], almost surely: five standard deviations of a sample to spare.
struct Bracket {
  double low = -std::numeric_limits<double>::infinity(), high = std::numeric_limits<double>::infinity();
};

inline Bracket bracket_of(std::vector<double>& scores, int64_t n, int64_t kappa) {
  for (double& score : scores) // a NaN has no rank; the pass over all the data will refuse it
    if (std::isnan(score)) score = 0;
  const double m = double(scores.size()), part = double(kappa) / double(n);
  const double spread = 5 * std::sqrt(m * part * (1 - part)) + 2;
  const auto at_rank = [&](double rank) { // the rank-th highest, 1-based
    const auto at = scores.begin() + (std::clamp<int64_t>(int64_t(rank), 1, int64_t(scores.size())) - 1);
    std::nth_element(scores.begin(), at, scores.end(), std::greater<>());
    return *at;
  };
  Bracket bracket;
  if (m * part + spread < m) bracket.low = at_rank(m * part + spread);
  if (m * part - spread > 1) bracket.high = at_rank(m * part - spread);
  return bracket;
}

/// The same from a sample of the data, where score(sample, scores) gives the scores.
template <class F> Bracket sampled_bracket(const std::vector<Piece>& pieces, int64_t n, int64_t kappa, const F& score) {
  const Sample sample = sample_of(pieces, n, std::clamp<int64_t>(n / 128, 4096, 16384));
  std::vector<double> scores(sample.x.size());
  score(sample, scores.data());
  return bracket_of(scores, n, kappa);
}

} // namespace lc::cpu
