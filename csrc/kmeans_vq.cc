#include "kmeans_vq.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>

#include "parallel.h"

namespace lc::cpu {
namespace {

constexpr int64_t kChunk = 1 << 13;   // vectors; a multiple of the tile
constexpr int64_t kTile = 1 << 9;     // vectors transposed at a time, while they are in the L1 cache
constexpr int64_t kSample = 1 << 16;  // vectors that k-means++ looks at
constexpr int64_t kManySums = 1 << 6; // chunks' sums kept at a time, so that memory does not grow with n

class Solver {
public:
  Solver(const KmeansVqProblem& problem, int d, int k) : p_(problem), d_(d), k_(k), row_(size_t(d)) {}

  KmeansVqStatus solve(bool warm, int max_iter, double tol) {
    if (!check_weights()) return KmeansVqStatus::bad_weights;
    if (!center()) return KmeansVqStatus::not_finite;
    if (!warm) seed();

    std::vector<float> better(p_.codebook, p_.codebook + size_t(k_) * row_);
    double before = assign(better);
    *p_.distortion = before;
    for (*p_.iterations = 0; *p_.iterations < max_iter;) {
      move(better);
      if (std::equal(better.begin(), better.end(), p_.codebook)) break;
      const double now = assign(better);
      if (!(now < before)) { // rounding: the last codebook was the best
        assign({p_.codebook, p_.codebook + better.size()});
        break;
      }
      std::copy(better.begin(), better.end(), p_.codebook);
      *p_.distortion = now;
      ++*p_.iterations;
      if (before - now <= tol * before) break;
      before = now;
    }
    return KmeansVqStatus::ok;
  }

private:
  bool check_weights() const {
    if (!p_.h) return true;
    bool good = true, some = false;
    for (int64_t i = 0; i < p_.n; ++i) good &= p_.h[i] >= 0 && p_.h[i] <= FLT_MAX, some |= p_.h[i] > 0;
    return good && some;
  }

  // The mean, and a power of two that brings the largest value near 1, so that no square overflows.
  bool center() {
    const int64_t chunks = chunk_count(p_.n, kChunk);
    std::vector<double> sums(size_t(chunks) * row_);
    std::vector<float> largest(static_cast<size_t>(chunks));
    parallel_for(p_.n, kChunk, [&](int64_t c, int64_t begin, int64_t end) {
      float most = 0;
      bool finite = true;
      for (int64_t i = begin * d_; i < end * d_; ++i) {
        const float a = std::fabs(p_.x[i]);
        finite &= a <= FLT_MAX, most = std::max(most, a);
        sums[size_t(c) * row_ + size_t(i % d_)] += double(p_.x[i]);
      }
      largest[size_t(c)] = finite ? most : std::numeric_limits<float>::infinity();
    });
    const float most = *std::max_element(largest.begin(), largest.end());
    if (std::isinf(most)) return false;
    unit_ = most > 0 ? std::ldexp(1.0f, std::clamp(-std::ilogb(most), -126, 126)) : 1;
    center_.assign(row_, 0);
    for (size_t i = 0; i < row_; ++i) {
      double sum = 0;
      for (size_t c = 0; c < size_t(chunks); ++c) sum += sums[c * row_ + i];
      center_[i] = float(sum / double(p_.n) * double(unit_));
    }
    return true;
  }

  // f(blocks, from, n) for tiles of x[begin .. end), transposed.
  template <class F> void for_each_tile(int64_t begin, int64_t end, const F& f) const {
    alignas(64) float blocks[kTile * 8];
    const auto kernel = LC_DISPATCH(kmeans_vq_block);
    for (int64_t at = begin; at < end; at += kTile) {
      const int64_t n = std::min(kTile, end - at);
      kernel(p_.x + at * d_, n, d_, unit_, center_.data(), blocks);
      f(static_cast<const float*>(blocks), at, n);
    }
  }

  // A codeword as the blocks see it.
  std::vector<float> seen(const float* codeword) const {
    std::vector<float> c(row_);
    for (size_t i = 0; i < row_; ++i) c[i] = unit_ * codeword[i] - center_[i];
    return c;
  }

  // k-means++: each codeword is a vector drawn with a probability proportional to its weight times its squared distance
  // from the nearest codeword so far.
  void seed() {
    const int64_t n = std::min(p_.n, kSample);
    const auto at = [&](int64_t i) { return n == p_.n ? i : i * p_.n / n; };
    std::vector<float> h, blocks(size_t(chunk_count(n, kKmeansVqBlock) * kKmeansVqBlock) * row_);
    const auto transpose = LC_DISPATCH(kmeans_vq_block);
    parallel_for(n, kKmeansVqBlock, [&](int64_t, int64_t begin, int64_t end) {
      float rows[kKmeansVqBlock * 8];
      for (int64_t i = begin; i < end; ++i) std::copy_n(p_.x + at(i) * d_, d_, rows + (i - begin) * d_);
      transpose(rows, end - begin, d_, unit_, center_.data(), blocks.data() + begin * d_);
    });
    for (int64_t i = 0; p_.h && i < n; ++i) h.push_back(p_.h[at(i)]);
    const float* weights = p_.h ? h.data() : nullptr;

    std::vector<float> nearest(size_t(n), 1.0f);
    std::vector<double> sums(size_t(chunk_count(n, kChunk)));
    for (int64_t i = 0; i < n; ++i) sums[size_t(i / kChunk)] += weights ? double(weights[i]) : 1.0;
    const auto approach = LC_DISPATCH(kmeans_vq_nearest);
    for (int c = 0; c < k_; ++c) {
      const int64_t chosen = draw(p_.random[c], sums, nearest, weights);
      std::copy_n(p_.x + at(chosen) * d_, d_, p_.codebook + c * d_);
      if (c == 0) nearest.assign(nearest.size(), FLT_MAX);
      const std::vector<float> codeword = seen(p_.codebook + c * d_);
      parallel_for(n, kChunk, [&](int64_t chunk, int64_t begin, int64_t end) {
        sums[size_t(chunk)] = approach(blocks.data() + begin * d_, weights ? weights + begin : nullptr, end - begin, d_,
                                       codeword.data(), nearest.data() + begin);
      });
    }
  }

  // The position that part u of the total weight times distance falls on, given the sum of each chunk.
  static int64_t draw(double u, const std::vector<double>& sums, const std::vector<float>& nearest, const float* h) {
    double total = 0;
    for (double s : sums) total += s;
    double left = u * total;
    size_t chunk = 0;
    while (chunk + 1 < sums.size() && left >= sums[chunk]) left -= sums[chunk++];
    const auto n = int64_t(nearest.size()), begin = int64_t(chunk) * kChunk, end = std::min(n, begin + kChunk);
    int64_t last = begin;
    for (int64_t i = begin; i < end; ++i) {
      const double share = (h ? double(h[i]) : 1.0) * double(nearest[size_t(i)]);
      if (!(share > 0)) continue;
      last = i;
      if (left < share) break;
      left -= share;
    }
    return last;
  }

  // Assigns the codes to a codebook; returns its distortion, and leaves the sums that move() needs.
  double assign(const std::vector<float>& codebook) {
    std::vector<float> centered, norms;
    for (int c = 0; c < k_; ++c) {
      double norm = 0;
      for (float v : seen(codebook.data() + c * d_)) centered.push_back(v), norm += double(v) * double(v);
      norms.push_back(float(norm / 2));
    }
    const auto assign_kernel = LC_DISPATCH(kmeans_vq_assign);
    const auto update_kernel = LC_DISPATCH(kmeans_vq_update);
    const size_t width = size_t(k_) * (row_ + 1) + 1;
    const int64_t chunks = chunk_count(p_.n, kChunk), grain = chunk_count(chunks, kManySums) * kChunk;
    std::vector<double> part(size_t(chunk_count(p_.n, grain)) * width);
    parallel_for(p_.n, grain, [&](int64_t c, int64_t begin, int64_t end) {
      double *sums = part.data() + size_t(c) * width, *mass = sums + size_t(k_) * row_;
      for_each_tile(begin, end, [&](const float* blocks, int64_t at, int64_t n) {
        assign_kernel(blocks, n, d_, centered.data(), norms.data(), k_, p_.codes + at);
      });
      mass[k_] = update_kernel(p_.x + begin * d_, p_.h ? p_.h + begin : nullptr, end - begin, d_, p_.codes + begin,
                               codebook.data(), sums, mass);
    });
    sums_.assign(width, 0);
    for (size_t i = 0; i < part.size(); ++i) sums_[i % width] += part[i];
    return sums_.back();
  }

  // Codewords go to the means of their vectors, those that have none to the vectors that are worst off.
  void move(std::vector<float>& codebook) {
    const double* mass = sums_.data() + size_t(k_) * row_;
    std::vector<int> used, empty;
    for (int c = 0; c < k_; ++c) {
      (mass[c] > 0 ? used : empty).push_back(c);
      for (int i = 0; i < d_ && mass[c] > 0; ++i)
        codebook[size_t(c * d_ + i)] = float(sums_[size_t(c * d_ + i)] / mass[c]);
    }
    if (empty.empty()) return;
    std::vector<float> nearest(size_t(p_.n), FLT_MAX);
    const auto kernel = LC_DISPATCH(kmeans_vq_nearest);
    const auto approach = [&](const std::vector<int>& codewords) { // lets them be the nearest where they are
      std::vector<std::vector<float>> c;
      for (const int codeword : codewords) c.push_back(seen(codebook.data() + codeword * d_));
      parallel_for(p_.n, kChunk, [&](int64_t, int64_t begin, int64_t end) {
        for_each_tile(begin, end, [&](const float* blocks, int64_t at, int64_t n) {
          for (const auto& codeword : c) kernel(blocks, nullptr, n, d_, codeword.data(), nearest.data() + at);
        });
      });
    };
    approach(used);
    for (int c : empty) {
      int64_t worst = 0;
      double most = 0;
      for (int64_t i = 0; i < p_.n; ++i) {
        const double share = (p_.h ? double(p_.h[i]) : 1.0) * double(nearest[size_t(i)]);
        if (share > most) most = share, worst = i;
      }
      if (!(most > 0)) return; // a codeword for each distinct vector
      std::copy_n(p_.x + worst * d_, d_, codebook.begin() + c * d_);
      approach({c});
    }
  }

  const KmeansVqProblem& p_;
  const int d_, k_;
  const size_t row_; // d
  float unit_ = 1;
  std::vector<float> center_;
  std::vector<double> sums_; // of the vectors of each codeword, then their weights, then the distortion
};

} // namespace

void kmeans_vq(const std::vector<KmeansVqProblem>& batch, int d, int k, bool warm, int max_iter, double tol,
               std::vector<KmeansVqStatus>& status) {
  status.resize(batch.size());
  const auto solve = [&](size_t b) { status[b] = Solver(batch[b], d, k).solve(warm, max_iter, tol); };
  const auto large = [&](size_t b) { return batch[b].n > 2 * kChunk; };
  for (size_t b = 0; b < batch.size(); ++b)
    if (large(b)) solve(b); // with all threads
  parallel_for(int64_t(batch.size()), 1, [&](int64_t b, int64_t, int64_t) {
    if (!large(size_t(b))) solve(size_t(b));
  });
}

} // namespace lc::cpu
