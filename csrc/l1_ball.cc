#include "l1_ball.h"

#include <algorithm>
#include <limits>

#include "parallel.h"
#include "prune.h"

namespace lc::cpu {
namespace {

constexpr int64_t kChunk = 1 << 16, kSample = 1 << 16;
constexpr int64_t kLine = 16; // floats sampled together: one cache line

std::vector<SoftRange> chunks_of(const std::vector<SoftRange>& tensors) {
  std::vector<SoftRange> chunks;
  for (const SoftRange& all : tensors)
    for (int64_t at = 0; at < all.n; at += kChunk)
      chunks.push_back({all.x + at, all.h ? all.h + at : nullptr, std::min(kChunk, all.n - at),
                        all.values ? all.values + at : nullptr});
  return chunks;
}

SoftSums sums(const std::vector<SoftRange>& chunks, double t) {
  const auto kernel = LC_DISPATCH(l1_sums);
  std::vector<SoftSums> parts(chunks.size());
  parallel_for(int64_t(chunks.size()), 1,
               [&](int64_t c, int64_t, int64_t) { parts[size_t(c)] = kernel(chunks[size_t(c)], t); });
  SoftSums total;
  for (const SoftSums& part : parts) {
    total.magnitude += part.magnitude;
    total.inverse += part.inverse;
    total.count += part.count;
    total.valid &= part.valid;
  }
  return total;
}

// Newton's method for sum max(|x| - t / h, 0) = radius, radius > 0. The sum is convex and piecewise linear in t: from
// wherever it starts, the second t is on the left of the root and the others rise to it; when the set of entries left
// stays as it was, t is exact. Ends at 0 if the root is not above it.
bool newton(const std::vector<SoftRange>& chunks, double radius, double* t) {
  for (int64_t before = -1;;) {
    const SoftSums s = sums(chunks, *t);
    if (!s.valid) return false;
    const bool first = before < 0;
    if (s.count == 0 && (!first || *t == 0)) return true; // t is the largest h |x|, but for rounding; or all are zero
    const double next = s.count ? std::max(0.0, (s.magnitude - radius) / s.inverse) : 0;
    // Rounding can make the last steps go down; a step that does not rise is the last.
    const bool done = first ? *t == 0 && next == 0 : s.count == before || next <= *t;
    *t = next;
    if (done) return true;
    if (s.count) before = s.count;
  }
}

// The root for a sample, with a radius in proportion.
double first_guess(const std::vector<SoftRange>& chunks, int64_t n, double radius) {
  std::vector<float> x, h;
  const int64_t stride = n / kSample * kLine;
  for (const SoftRange& chunk : chunks)
    for (int64_t i = (stride - kLine) / 2; i + kLine <= chunk.n; i += stride) {
      x.insert(x.end(), chunk.x + i, chunk.x + i + kLine);
      if (chunk.h) h.insert(h.end(), chunk.h + i, chunk.h + i + kLine);
    }
  double t = 0;
  const std::vector<SoftRange> sample{{x.data(), h.empty() ? nullptr : h.data(), int64_t(x.size()), nullptr}};
  return newton(sample, radius * double(x.size()) / double(n), &t) ? t : 0;
}

} // namespace

bool l1_threshold(const std::vector<SoftRange>& tensors, double radius, double* threshold) {
  const std::vector<SoftRange> chunks = chunks_of(tensors);
  if (radius == 0) {
    *threshold = std::numeric_limits<double>::infinity();
    return sums(chunks, 0).valid;
  }
  int64_t n = 0;
  for (const SoftRange& chunk : chunks) n += chunk.n;
  *threshold = n > 4 * kSample ? first_guess(chunks, n, radius) : 0;
  if (!newton(chunks, radius, threshold)) return false;
  if (*threshold > 0) return true;
  // Entries of weight 0 are not among those left at 0, but count for being inside.
  const SoftSums all = sums(chunks, -1);
  *threshold = all.magnitude <= radius ? -1 : 0;
  return all.valid;
}

bool soft_threshold(const std::vector<SoftRange>& tensors, double t) {
  const std::vector<SoftRange> chunks = chunks_of(tensors);
  int64_t n = 0;
  bool aligned = true;
  for (const SoftRange& all : tensors) n += all.n, aligned &= uintptr_t(all.values) % 64 == 0;
  const auto kernel = LC_DISPATCH(soft_pass);
  std::vector<uint8_t> valid(chunks.size());
  parallel_for(int64_t(chunks.size()), 1, [&](int64_t c, int64_t, int64_t) {
    valid[size_t(c)] = kernel(chunks[size_t(c)], t, aligned && n >= kStreamFrom);
  });
  return std::all_of(valid.begin(), valid.end(), [](uint8_t v) { return v; });
}

} // namespace lc::cpu
