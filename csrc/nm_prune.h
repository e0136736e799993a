// Keep the n entries of the largest score in each group of m, zero the rest.
#pragma once
#include "isa.h"
#include "prune.h"

namespace lc::cpu {
/// all.n is divided by m * inner: blocks of m rows of `inner` entries, and each column of a block is a group,
/// 1 <= n < m <= 16. Among equal scores the lowest row survives. The outputs may not overlap the inputs. Returns false,
/// with the outputs undefined, if a score or an x is not valid. One pass, O(N m); no extra memory.
bool nm_prune(const PruneRange& all, Score score, int64_t inner, int n, int m);
} // namespace lc::cpu

/// The same on whole blocks that begin at a word of the mask bits; inner > 1. `stream` writes the values past the
/// caches, for inner % 32 = 0.
LC_PER_ISA(bool nm_columns(const PruneRange& range, Score score, int64_t inner, int n, int m, bool stream);)

/// The same for inner = 1: groups of consecutive entries.
LC_PER_ISA(bool nm_rows(const PruneRange& range, Score score, int n, int m, bool stream);)
