#include "pack_codes.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>

#include "parallel.h"

namespace lc::cpu {
namespace {

constexpr int64_t kChunk = 1 << 16; // codes; a multiple of 8, so that chunks of a row start on a byte

int64_t row_bytes(int64_t cols, int bits) { return (cols * bits + 31) / 32 * 4; }

// f(row, first, n) for pieces of rows of at most kChunk codes. Short rows go many to a chunk.
template <class F> void for_each_piece(int64_t rows, int64_t cols, const F& f) {
  const int64_t pieces = chunk_count(cols, kChunk);
  parallel_for(rows * pieces, std::max<int64_t>(1, kChunk / cols), [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % pieces * kChunk;
      f(i / pieces, first, std::min(kChunk, cols - first));
    }
  });
}

// Rows without filling are one long row.
void join_rows(int64_t* rows, int64_t* cols, int bits) {
  if (*cols * bits % 32 == 0) *cols *= *rows, *rows = 1;
}

} // namespace

bool pack_codes(const uint8_t* codes, int64_t rows, int64_t cols, int bits, int32_t* words) {
  if (rows * cols == 0) return true;
  join_rows(&rows, &cols, bits);
  const auto kernel = LC_DISPATCH(pack_codes_range);
  const int64_t stride = row_bytes(cols, bits), used = (cols * bits + 7) / 8;
  std::atomic<bool> fits = true;
  for_each_piece(rows, cols, [&](int64_t row, int64_t first, int64_t n) {
    uint8_t* bytes = reinterpret_cast<uint8_t*>(words) + row * stride;
    if (!kernel(codes + row * cols + first, n, bits, bytes + first * bits / 8)) fits = false;
    if (first + n == cols) std::memset(bytes + used, 0, size_t(stride - used));
  });
  return fits;
}

void unpack_codes(const int32_t* words, int64_t rows, int64_t cols, int bits, uint8_t* codes) {
  if (rows * cols == 0) return;
  join_rows(&rows, &cols, bits);
  const auto kernel = LC_DISPATCH(unpack_codes_range);
  const int64_t stride = row_bytes(cols, bits);
  for_each_piece(rows, cols, [&](int64_t row, int64_t first, int64_t n) {
    const uint8_t* bytes = reinterpret_cast<const uint8_t*>(words) + row * stride;
    kernel(bytes + first * bits / 8, n, bits, codes + row * cols + first);
  });
}

void count_codes(const uint8_t* codes, int64_t n, int64_t* counts) {
  constexpr int64_t kLong = 1 << 20;
  const auto kernel = LC_DISPATCH(count_codes_range);
  std::array<std::atomic<int64_t>, 256> total{};
  parallel_for(n, kLong, [&](int64_t, int64_t begin, int64_t end) {
    std::array<uint32_t, 256> part{};
    kernel(codes + begin, end - begin, part.data());
    for (size_t c = 0; c < 256; ++c)
      if (part[c]) total[c] += part[c];
  });
  for (size_t c = 0; c < 256; ++c) counts[c] = total[c];
}

} // namespace lc::cpu
