// Soft thresholds, and the sums that the projection on the l1 ball needs.
#pragma once
#include "isa.h"

namespace lc {

struct SoftRange {
  const float* x;
  const float* h; // weights >= 0, or null for ones
  int64_t n;
  float* values; // sign(x) max(|x| - t / h, 0); or null. It may be x itself
};

/// Of the entries with |x| > t / h: they are the ones that a soft threshold t leaves.
struct SoftSums {
  double magnitude = 0; // sum |x|
  double inverse = 0;   // sum 1 / h
  int64_t count = 0;
  bool valid = true; // every x and h of the range, also those not counted: finite, h not negative
};

namespace cpu {
/// The threshold t >= 0 of the projection on {sum |theta| <= radius} in the norm sum h (x - theta)^2: the t with
/// sum max(|x| - t / h, 0) = radius, to float64; -1 if x is inside already, +inf if radius is 0. 1 / h is rounded to
/// float32; an h whose inverse overflows, 0 among them, counts as 0: its entry is given up before any other is touched.
/// Returns false if x or h is not valid. A sample gives a first t, then Newton's method, one reading pass a step, until
/// the set of entries left does not change: about four passes. The same for every instruction set and number of
/// threads.
bool l1_threshold(const std::vector<SoftRange>& tensors, double radius, double* threshold);

/// Writes the values for threshold t >= 0, computed in float64 and rounded. Returns false if x or h is not valid.
bool soft_threshold(const std::vector<SoftRange>& tensors, double t);
} // namespace cpu
} // namespace lc

/// The sums over a range, in an order that is the same for every instruction set; t < 0 leaves every entry.
LC_PER_ISA(SoftSums l1_sums(const SoftRange& range, double t);)

/// Writes the values; `stream` past the caches. Returns whether the range is valid.
LC_PER_ISA(bool soft_pass(const SoftRange& range, double t, bool stream);)
