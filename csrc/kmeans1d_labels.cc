#include "kmeans1d_labels.h"

#include <algorithm>
#include <cmath>

#include "assign.h"
#include "parallel.h"

namespace lc::cpu::kmeans {
namespace {

// Fills the table of bins for labels of more than 16 codewords: the coarsest grid with at most one boundary in a bin.
bool fill_entries(Kmeans1dLabels& labels, Kmeans1dGrid grid, std::vector<Kmeans1dLabels::Entry>& entries) {
  const int64_t keys = int64_t(grid.half) << grid.shift;
  const auto bin_of = [&](float x, int shift) { // exactly as the kernels compute it, but also off the grid
    const float t = x - grid.center, a = std::fabs(t) + grid.base;
    const int64_t key = std::min(int64_t(bits_of(a)) - int64_t(bits_of(grid.base)), keys - 1);
    return (t < 0 ? ~key : key) >> shift;
  };
  int shift = grid.shift;
  while ((keys >> shift) > 512) ++shift;
  const auto crowded = [&] {
    for (int j = 0; j + 2 < labels.k; ++j)
      if (labels.mids[j] != labels.mids[j + 1] && bin_of(labels.mids[j], shift) == bin_of(labels.mids[j + 1], shift))
        return true;
    return false;
  };
  while (crowded())
    if (--shift < std::max(0, grid.shift - 2)) return false;
  grid.shift = shift, grid.half = int32_t((keys >> shift) + 1);
  entries.resize(2 * size_t(grid.half));
  int code = 0; // of the lower end of the bin
  for (int64_t bin = -grid.half; bin < grid.half; ++bin) {
    int above = code;
    while (above + 1 < labels.k && bin_of(labels.mids[above], shift) <= bin) ++above;
    const float mid = above > code ? labels.mids[code] : INFINITY;
    entries[size_t(bin + grid.half)] = {mid, labels.codebook[code], labels.codebook[above],
                                        uint32_t(code | above << 16)};
    code = above;
  }
  labels.grid = grid, labels.entries = entries.data();
  return true;
}

struct Piece {
  const Kmeans1dPart* part;
  int64_t begin, size;
};

// Whether rows of packed codes end within a word: pieces are whole rows then.
bool is_ragged(const Kmeans1dPart& part, int bits) { return bits && part.cols < part.n && part.cols * bits % 32 != 0; }

} // namespace

double label_parts(const Kmeans1dProblem& problem, const Kmeans1dOptions& options, const std::vector<float>& codebook,
                   const Kmeans1dGrid* grid, bool exact, bool keep) {
  static thread_local std::vector<Kmeans1dLabels::Entry> entries;
  const int k = options.k, bits = options.bits;
  Kmeans1dLabels labels;
  labels.k = k, labels.exact = exact, labels.entries = nullptr;
  std::copy(codebook.begin(), codebook.end(), labels.codebook);
  std::fill(labels.codebook + k, labels.codebook + 256, codebook.back());
  midpoints(labels.codebook, k, labels.mids);
  std::fill(labels.mids + k - 1, labels.mids + 256, INFINITY);
  if (k > 16 && grid) fill_entries(labels, *grid, entries);

  const auto label = LC_DISPATCH(kmeans1d_label);
  const auto pack = LC_DISPATCH(kmeans1d_pack);
  const auto run = [&](const Piece& piece) {
    const Kmeans1dPart& part = *piece.part;
    const float *x = part.x + piece.begin, *h = part.h ? part.h + piece.begin : nullptr;
    if (keep && !bits) return label(x, h, piece.size, labels, static_cast<uint8_t*>(part.codes) + piece.begin);
    constexpr int64_t kBlock = 4096; // codes that are packed while they are in the cache
    uint8_t codes[kBlock];
    double sum = 0;
    const bool ragged = is_ragged(part, bits);
    const int64_t row = ragged ? part.cols : piece.size;
    auto* words = static_cast<int32_t*>(part.codes) +
                  (ragged ? piece.begin / part.cols * ((part.cols * bits + 31) / 32) : piece.begin * bits / 32);
    for (int64_t begin = 0; begin < piece.size; begin += row) {
      for (int64_t at = 0; at < row; at += kBlock) {
        const int64_t size = std::min(kBlock, row - at), i = begin + at;
        sum += label(x + i, h ? h + i : nullptr, size, labels, codes);
        if (keep) pack(codes, size, bits, words);
        words += (size * bits + 31) / 32;
      }
    }
    return sum;
  };
  std::vector<Piece> pieces;
  for (int64_t i = 0; i < problem.part_count; ++i) {
    const Kmeans1dPart& part = problem.parts[i];
    const int64_t size = is_ragged(part, bits) ? std::max<int64_t>(kChunk / part.cols, 1) * part.cols : kChunk;
    if (problem.part_count == 1 && part.n <= size) return run({&part, 0, part.n});
    for (int64_t at = 0; at < part.n; at += size) pieces.push_back({&part, at, std::min(size, part.n - at)});
  }
  std::vector<double> sums(pieces.size());
  parallel_for(int64_t(pieces.size()), 1,
               [&](int64_t i, int64_t, int64_t) { sums[size_t(i)] = run(pieces[size_t(i)]); });
  double distortion = 0;
  for (double sum : sums) distortion += sum;
  return distortion;
}

} // namespace lc::cpu::kmeans
