#include "../pack_codes.h"

#include "simd.h"

namespace lc::LC_ISA {
namespace {

constexpr uint64_t kOnes = 0x0101010101010101;

LC_INLINE uint64_t load64(const uint8_t* p, int64_t bytes = 8) {
  uint64_t v = 0;
  __builtin_memcpy(&v, p, bytes);
  return v;
}

} // namespace

bool pack_codes_range(const uint8_t* codes, int64_t n, int bits, uint8_t* bytes) {
  if (bits == 8) {
    __builtin_memcpy(bytes, codes, n);
    return true;
  }
  const uint64_t mask = kOnes * ((1u << bits) - 1);
  const int64_t end = (n * bits + 7) / 8;
  uint64_t seen = 0;
  int64_t i = 0, at = 0;
  for (; at + 8 <= end && i + 8 <= n; i += 8, at += bits) { // what a store writes past its bytes, the next overwrites
    const uint64_t eight = load64(codes + i), packed = gather_bits(eight, mask, bits);
    seen |= eight;
    __builtin_memcpy(bytes + at, &packed, 8);
  }
  for (; i < n; i += 8, at += bits) {
    const uint64_t eight = load64(codes + i, n - i < 8 ? n - i : 8), packed = gather_bits(eight, mask, bits);
    seen |= eight;
    __builtin_memcpy(bytes + at, &packed, end - at < bits ? end - at : bits);
  }
  return (seen & ~mask) == 0;
}

void unpack_codes_range(const uint8_t* bytes, int64_t n, int bits, uint8_t* codes) {
  if (bits == 8) {
    __builtin_memcpy(codes, bytes, n);
    return;
  }
  const uint64_t mask = kOnes * ((1u << bits) - 1);
  const int64_t end = (n * bits + 7) / 8;
  int64_t i = 0, at = 0;
  for (; at + 8 <= end && i + 8 <= n; i += 8, at += bits) {
    const uint64_t eight = spread_bits(load64(bytes + at), mask, bits);
    __builtin_memcpy(codes + i, &eight, 8);
  }
  for (; i < n; i += 8, at += bits) {
    const uint64_t eight = spread_bits(load64(bytes + at, end - at < bits ? end - at : bits), mask, bits);
    __builtin_memcpy(codes + i, &eight, n - i < 8 ? n - i : 8);
  }
}

// Four tables, since equal codes in a row would wait for each other's store.
void count_codes_range(const uint8_t* codes, int64_t n, uint32_t* counts) {
  uint32_t table[4][256] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const uint64_t eight = load64(codes + i);
    for (int b = 0; b < 8; ++b) ++table[b % 4][uint8_t(eight >> (8 * b))];
  }
  for (; i < n; ++i) ++counts[codes[i]];
  for (int c = 0; c < 256; ++c) counts[c] += table[0][c] + table[1][c] + table[2][c] + table[3][c];
}

} // namespace lc::LC_ISA
