// Vector k-means: k codewords of d values, for product quantization.
#pragma once
#include "isa.h"

namespace lc {

enum class KmeansVqStatus : int { ok = 0, not_finite = 1, bad_weights = 2 };

namespace cpu {
struct KmeansVqProblem {
  const float* x;       // n vectors of d values
  const float* h;       // a weight >= 0 and finite for each vector, not all zero; or null: all one
  int64_t n;            // >= 1
  const double* random; // k numbers in [0, 1), for a cold start
  uint8_t* codes;       // out: n
  float* codebook;      // k codewords of d values; in: the start if `warm`
  double* distortion;   // out: sum_i h_i |x_i - codebook[codes[i]]|^2
  int64_t* iterations;  // out: how often the codebook was moved
};

/// Solves independent problems with the same d (2, 4 or 8) and k (1 to 256) by Lloyd's iterations, at most max_iter, or
/// until one lowers the distortion by no more than tol times itself.
///
/// Cold start: k-means++ (Arthur and Vassilvitskii 2007), on at most 2^16 evenly spaced vectors. A codeword without
/// vectors moves to the vector that is worst off, the lowest index in a tie. The distortion never rises from one
/// iteration to the next, nor above that of a warm start. codes[i] is the nearest codeword, by distances rounded to
/// float around the mean of x, the lowest index in a tie.
///
/// O(n k d) an iteration. Extra memory: a cold start keeps at most 2^16 vectors, and their distances; where codewords
/// lose all their vectors, n floats. The same for any number of threads and instruction set.
void kmeans_vq(const std::vector<KmeansVqProblem>& batch, int d, int k, bool warm, int max_iter, double tol,
               std::vector<KmeansVqStatus>& status);
} // namespace cpu

constexpr int kKmeansVqBlock = 32; // vectors that are transposed together
} // namespace lc

/// blocks[b][i][j] = unit * x[32 b + j][i] - center[i] for the ceil(n / 32) blocks; zero past n.
LC_PER_ISA(void kmeans_vq_block(const float* x, int64_t n, int d, float unit, const float* center, float* blocks);)

/// Codes of n vectors in blocks: the codeword with the least norms[j] - <x, codebook[j]>, norms being |codeword|^2 / 2.
LC_PER_ISA(void kmeans_vq_assign(const float* blocks, int64_t n, int d, const float* codebook, const float* norms,
                                 int k, uint8_t* codes);)

/// sums[c] += h x and mass[c] += h over the vectors of each code c; returns sum h |x - codebook[c]|^2. h may be null.
LC_PER_ISA(double kmeans_vq_update(const float* x, const float* h, int64_t n, int d, const uint8_t* codes,
                                   const float* codebook, double* sums, double* mass);)

/// nearest[i] = min(nearest[i], |x_i - center|^2) for n vectors in blocks; returns sum h nearest. h may be null.
LC_PER_ISA(double kmeans_vq_nearest(const float* blocks, const float* h, int64_t n, int d, const float* center,
                                    float* nearest);)
