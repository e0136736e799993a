// The only threading in the library: OpenMP over a split of the work that does not depend on the number of threads.
//
// An extension built with -fopenmp binds to the OpenMP runtime that torch has already loaded, so there is one pool of
// threads, and torch.set_num_threads() holds here too (tests/test_threads.py).
#pragma once
#include <algorithm>
#include <cstdint>
#include <exception>
#include <omp.h>

namespace lc {

inline int64_t chunk_count(int64_t n, int64_t grain) { return (n + grain - 1) / grain; }

/// Calls f(chunk, begin, end) once for each chunk of `grain` consecutive items of [0, n), in any order and on any
/// thread. Results that are kept per chunk and combined in chunk order are the same for any number of threads.
/// An exception of f is thrown again here, once all chunks have run. A call from inside another parallel_for runs on
/// the calling thread.
template <class F> void parallel_for(int64_t n, int64_t grain, const F& f) {
  const int64_t chunks = chunk_count(n, grain);
  const int threads = int(std::min<int64_t>(omp_in_parallel() ? 1 : omp_get_max_threads(), chunks));
  const auto run = [&](int64_t c) { f(c, c * grain, std::min(n, (c + 1) * grain)); };
  if (threads <= 1) {
    for (int64_t c = 0; c < chunks; ++c) run(c);
    return;
  }
  std::exception_ptr error; // must not leave the parallel region: that would end the process
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t c = 0; c < chunks; ++c) {
    try {
      run(c);
    } catch (...) {
#pragma omp critical(lc_parallel_for)
      error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

} // namespace lc
