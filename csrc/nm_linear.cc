#include "nm_linear.h"

#include <cstring>
#include <vector>

#include "parallel.h"
#include "sparse_linear.h"
#include "workspace.h"

namespace lc::cpu {
namespace {

constexpr int64_t kLargestOfWindows = 12; // the largest batch for nm_linear_range: measured, 4096 x 4096, 2:4

int slots_per_word(int m) { return m <= 4 ? 16 : 8; }
int position_bits(int m) { return m <= 2 ? 1 : m <= 4 ? 2 : m <= 8 ? 3 : 4; }

// The positions of a row, one after the other.
class Positions {
public:
  Positions(const uint32_t* words, int bits) : words_(words), bits_(bits) {}
  uint32_t next() {
    if (have_ < bits_) buffer_ |= uint64_t(*words_++) << have_, have_ += 32;
    const uint32_t position = uint32_t(buffer_) & ((1u << bits_) - 1);
    buffer_ >>= bits_, have_ -= bits_;
    return position;
  }

private:
  const uint32_t* words_;
  const int bits_;
  uint64_t buffer_ = 0;
  int have_ = 0;
};

// Blocks [begin, end); returns the first bad row, or -1.
template <class V> int64_t fill(const V* values, const uint32_t* positions, int64_t rows, int64_t cols, int n, int m,
                                int64_t begin, int64_t end, V* values_out, uint32_t* words_out) {
  const int bits = position_bits(m), per_word = slots_per_word(m), shift = 32 / per_word;
  const int64_t groups = (cols + m - 1) / m, used = groups * n, slots = nm_linear_slots(cols, n, m);
  const int64_t row_words = (used * bits + 31) / 32;
  int64_t bad = -1;
  for (int64_t b = begin; b < end; ++b) {
    V* to = values_out + b * slots * 16;
    uint32_t* word = words_out + b * (slots / per_word) * 16;
    std::fill_n(to, slots * 16, V());
    std::fill_n(word, slots / per_word * 16, 0u);
    for (int64_t o = 16 * b; o < std::min(rows, 16 * b + 16); ++o) {
      Positions at(positions + o * row_words, bits);
      int64_t s = 0;
      bool good = true;
      for (int64_t g = 0; g < groups; ++g) {
        uint32_t least = 0;
        for (int t = 0; t < n; ++t, ++s) {
          const uint32_t p = at.next();
          good &= p >= least && p < uint32_t(m);
          least = p + 1;
          if (g * m + int64_t(p) >= cols) continue;
          to[s * 16 + o % 16] = values[o * used + s];
          word[s / per_word * 16 + o % 16] |= p << (s % per_word * shift);
        }
      }
      if (!good && bad < 0) bad = o;
    }
  }
  return bad;
}

struct Windows {
  const float* data;
  int64_t quad; // floats
};

// x as nm_linear_range takes it.
Windows make_windows(const float* x, int64_t batch, int64_t cols, int64_t slots, int n, int m, Workspace& scratch) {
  const int width = m <= 4 ? 4 : m <= 8 ? 8 : 16, in_quad = batch == 1 ? 1 : 4;
  const int64_t groups = (slots + n - 1) / n, quad = groups * in_quad * width, quads = (batch + in_quad - 1) / in_quad;
  float* const windows = scratch.floats(quads * quad);
  parallel_for(quads, 1, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t i = begin * in_quad; i < end * in_quad; ++i) {
      float* to = windows + i / in_quad * quad + i % in_quad * width;
      const int64_t whole = i < batch ? cols / m : 0, rest = i < batch ? cols % m : 0;
      const float* from = x + i * cols;
      for (int64_t g = 0; g < whole; ++g, from += m, to += in_quad * width) {
        std::memcpy(to, from, size_t(m) * sizeof(float));
        for (int j = m; j < width; ++j) to[j] = 0; // no position says so
      }
      for (int64_t g = whole; g < groups; ++g, to += in_quad * width)
        for (int j = 0; j < width; ++j) to[j] = g == whole && j < rest ? from[j] : 0;
    }
  });
  return {windows, quad};
}

} // namespace

int64_t nm_linear_slots(int64_t cols, int n, int m) {
  const int64_t used = (cols + m - 1) / m * n, per_word = slots_per_word(m);
  return (used + per_word - 1) / per_word * per_word;
}

int64_t nm_linear_layout(const void* values, bool bfloat, const int32_t* positions, int64_t rows, int64_t cols, int n,
                         int m, void* values_out, uint32_t* words_out) {
  const int64_t blocks = (rows + 15) / 16, grain = 4;
  std::vector<int64_t> bad(size_t(chunk_count(blocks, grain)), -1);
  const auto* words = reinterpret_cast<const uint32_t*>(positions);
  parallel_for(blocks, grain, [&](int64_t chunk, int64_t begin, int64_t end) {
    bad[size_t(chunk)] = bfloat ? fill(static_cast<const uint16_t*>(values), words, rows, cols, n, m, begin, end,
                                       static_cast<uint16_t*>(values_out), words_out)
                                : fill(static_cast<const float*>(values), words, rows, cols, n, m, begin, end,
                                       static_cast<float*>(values_out), words_out);
  });
  for (const int64_t row : bad)
    if (row >= 0) return row;
  return -1;
}

void nm_linear(const float* x, int64_t batch, const void* values, bool bfloat, const uint32_t* words, int64_t rows,
               int64_t cols, int n, int m, const float* bias, bool accumulate, Activation f, float* y) {
  if (rows == 0 || batch == 0) return;
  const int64_t slots = nm_linear_slots(cols, n, m), blocks = (rows + 15) / 16;
  // About 2^16 slots a chunk: a function of the shape only.
  const int64_t grain = std::max<int64_t>(1, (1 << 16) / std::max<int64_t>(1, slots * 16));
  static thread_local Workspace kept;
  Workspace& scratch = kept; // of the calling thread, on all threads
  if (batch <= kLargestOfWindows) {
    const Windows windows = make_windows(x, batch, cols, slots, n, m, scratch);
    const auto kernel = LC_DISPATCH(nm_linear_range);
    parallel_for(blocks, grain, [&](int64_t, int64_t begin, int64_t end) {
      kernel(windows.data, batch, windows.quad, values, bfloat, words, slots, n, m, bias, accumulate, rows, begin, end,
             y);
      activate(f, rows, 0, batch, 16 * begin, std::min(rows, 16 * end), y);
    });
    return;
  }
  const auto transpose = LC_DISPATCH(sparse_linear_panel);
  const auto kernel = LC_DISPATCH(nm_linear_panel_range);
  const int64_t columns = (slots + n - 1) / n * m;
  for (int64_t first = 0; first < batch; first += 64) {
    const int width = batch - first <= 16 ? 16 : batch - first <= 32 ? 32 : 64;
    float* const panel = scratch.floats(columns * width);
    parallel_for(cols, 512, [&](int64_t, int64_t begin, int64_t end) {
      transpose(x, batch, cols, first, width, begin, end, panel);
    });
    std::fill(panel + cols * width, panel + columns * width, 0.0f);
    parallel_for(blocks, std::max<int64_t>(grain, 4), [&](int64_t, int64_t begin, int64_t end) {
      kernel(panel, width, batch, first, values, bfloat, words, slots, n, m, bias, accumulate, rows, begin, end, y);
      activate(f, rows, first, std::min(batch, first + width), 16 * begin, std::min(rows, 16 * end), y);
    });
  }
}

} // namespace lc::cpu
