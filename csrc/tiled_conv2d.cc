#include "tiled_conv2d.h"

#include <algorithm>
#include <vector>

#include "parallel.h"

namespace lc::cpu {
namespace {

constexpr int64_t kWeights = 1 << 18; // floats of decoded weights at a time
constexpr int64_t kPixels = 1 << 20;  // floats of padded images at a time
constexpr int64_t kPositions = 96;    // of the output in a task: 8 blocks of 12, 16 of 6

float* scratch(std::vector<float>& held, int64_t n) {
  constexpr int64_t kAlign = 16; // floats
  if (int64_t(held.size()) < n + kAlign) held.resize(n + kAlign);
  const auto address = reinterpret_cast<uintptr_t>(held.data());
  return held.data() + (64 - address % 64) % 64 / 4;
}

// Images [first, first + n) with their padding, channels last.
void pad(const float* x, const ConvShape& s, int64_t first, int64_t n, float* padded) {
  const int64_t rows = s.height + 2 * s.padding[0], cols = s.width + 2 * s.padding[1], c = s.channels;
  parallel_for(n * rows, std::max<int64_t>(1, 4096 / (cols * c)), [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      float* to = padded + r * cols * c;
      const int64_t h = r % rows - s.padding[0];
      if (h < 0 || h >= s.height) {
        std::fill(to, to + cols * c, 0.0f);
        continue;
      }
      std::fill(to, to + s.padding[1] * c, 0.0f);
      to += s.padding[1] * c;
      std::fill(to + s.width * c, to + (s.width + s.padding[1]) * c, 0.0f);
      const float* from = x + (first + r / rows) * s.step[0] + h * s.step[2];
      if (s.step[1] == 1 && s.step[3] == c) {
        std::copy(from, from + s.width * c, to);
      } else {
        for (int64_t i = 0; i < c; ++i)
          for (int64_t w = 0; w < s.width; ++w) to[w * c + i] = from[i * s.step[1] + w * s.step[3]];
      }
    }
  });
}

// Tiles [begin, end) of the weights.
void decode(const ConvWeight& w, int64_t taps, int64_t begin, int64_t end, float* weights) {
  const auto kernel = LC_DISPATCH(conv_tile_decode);
  const int64_t size = taps * kConvTile;
  parallel_for(end - begin, std::max<int64_t>(1, 16384 / size), [&](int64_t, int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) {
      float* tile = weights + t * size;
      if (w.codes)
        kernel(w.codes + (begin + t) * size * w.bits / 8, w.bits,
               w.table + (w.per_output ? (begin + t) * kConvTile << w.bits : 0), w.per_output, taps, tile);
      else
        std::fill(tile, tile + size, 0.0f);
      if (w.starts)
        for (int32_t i = w.starts[begin + t]; i < w.starts[begin + t + 1]; ++i) tile[w.places[i]] += w.values[i];
    }
  });
}

} // namespace

void tiled_conv2d(const float* x, const ConvShape& s, const ConvWeight& w, const float* bias, float* y) {
  thread_local std::vector<float> held_images, held_weights;
  const auto kernel = LC_DISPATCH(conv_tile_positions);
  const int64_t c = s.channels, taps = s.taps(), tiles = s.tiles();
  const int64_t rows = s.height + 2 * s.padding[0], cols = s.width + 2 * s.padding[1];
  const int64_t out_width = s.out_width(), per_image = s.out_height() * out_width;
  const bool in_place = s.padding[0] == 0 && s.padding[1] == 0 && s.step[1] == 1 && s.step[3] == c &&
                        s.step[2] == s.width * c && s.step[0] == rows * cols * c;

  std::vector<int64_t> run_at; // a kernel row is one run, unless it is dilated
  const bool whole = s.dilation[1] == 1;
  for (int64_t i = 0; i < s.kernel_height; ++i)
    for (int64_t j = 0; j < (whole ? 1 : s.kernel_width); ++j)
      run_at.push_back((i * s.dilation[0] * cols + j * s.dilation[1]) * c);
  const int64_t length = whole ? s.kernel_width * c : c;

  const int64_t images = in_place ? s.batch : std::max<int64_t>(1, kPixels / (rows * cols * c));
  const int64_t block = std::max<int64_t>(1, kWeights / (taps * kConvTile));
  float* weights = scratch(held_weights, std::min(block, tiles) * taps * kConvTile);
  for (int64_t first = 0; first < s.batch; first += images) {
    const int64_t n = std::min(images, s.batch - first);
    const float* image = x;
    if (!in_place) {
      float* padded = scratch(held_images, n * rows * cols * c);
      pad(x, s, first, n, padded);
      image = padded;
    }
    for (int64_t begin = 0; begin < tiles; begin += block) {
      const int64_t end = std::min(tiles, begin + block);
      if (first == 0 || tiles > block) decode(w, taps, begin, end, weights);
      parallel_for(n * per_image, kPositions, [&](int64_t, int64_t p, int64_t last) {
        int64_t at[kPositions];
        for (int64_t i = p; i < last; ++i) {
          const int64_t r = i / per_image * rows + i % per_image / out_width * s.stride[0];
          at[i - p] = (r * cols + i % out_width * s.stride[1]) * c;
        }
        for (int64_t t = begin; t < end; ++t) {
          const int64_t o = t * kConvTile;
          kernel(image, at, last - p, run_at.data(), int64_t(run_at.size()), length,
                 weights + (t - begin) * taps * kConvTile, bias ? bias + o : nullptr,
                 int(std::min<int64_t>(kConvTile, s.outputs - o)), y + (first * per_image + p) * s.outputs + o,
                 s.outputs);
        }
      });
    }
  }
}

} // namespace lc::cpu
