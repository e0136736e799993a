// Codes of 1 to 8 bits as rows of a dense bit stream, and how often each code occurs.
#pragma once
#include "isa.h"

// The layout: code i of a row is at bit i * bits of the row's stream, lowest bit first, and a row is filled with zeros
// to whole 32-bit words. Eight codes of any width are whole bytes. Little-endian machines only. All of it is integer
// work, the same on every instruction set.

/// n codes of one row become ceil(n * bits / 8) bytes. Returns whether every code is below 2^bits. No overlap.
LC_PER_ISA(bool pack_codes_range(const uint8_t* codes, int64_t n, int bits, uint8_t* bytes);)

/// The inverse; bits past the last code are ignored.
LC_PER_ISA(void unpack_codes_range(const uint8_t* bytes, int64_t n, int bits, uint8_t* codes);)

/// counts[c] += the number of codes equal to c, for c in 0..255. n < 2^32.
LC_PER_ISA(void count_codes_range(const uint8_t* codes, int64_t n, uint32_t* counts);)

namespace lc::cpu {
/// rows * cols codes become rows * ceil(cols * bits / 32) words. Returns whether every code is below 2^bits; if not,
/// the words are undefined. All threads, one pass.
bool pack_codes(const uint8_t* codes, int64_t rows, int64_t cols, int bits, int32_t* words);
void unpack_codes(const int32_t* words, int64_t rows, int64_t cols, int bits, uint8_t* codes);

/// counts[0..255] of n codes.
void count_codes(const uint8_t* codes, int64_t n, int64_t* counts);
} // namespace lc::cpu
