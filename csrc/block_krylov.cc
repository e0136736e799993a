#include "block_krylov.h"

#include "error.h"
#include "gram_product.h"

#include <algorithm>
#include <cmath>
#include <memory>

namespace lc::cpu {
namespace {

constexpr int64_t kBlock = 4;      // rows that are made orthogonal together
constexpr int64_t kSlice = 32;     // rows that are multiplied in one pass over the matrix
constexpr float kLost = 1e-6f;     // of the norm of a product: what is left is rounding noise
constexpr float kSmall = 1e-2f;    // of what is left: a correction after which rows are orthogonal
constexpr float kCancelled = 0.1f; // of a norm, beyond which a row is made orthogonal once more
constexpr int kPasses = 4;

/// Memory that grows and is not initialized.
class Scratch {
public:
  float* at_least(int64_t size) {
    if (size > size_) {
      data_.reset(new float[size_t(size)]);
      size_ = size;
    }
    return data_.get();
  }

private:
  std::unique_ptr<float[]> data_;
  int64_t size_ = 0;
};

/// One problem at work, with its scratch memory.
class Krylov {
public:
  explicit Krylov(const KrylovSpace& space) : s_(space), n_(space.n) { LC_CHECK(n_ >= 16, "n =", n_); }

  void extend(int64_t size, int64_t rows) {
    for (int64_t at = size; at < size + rows; at += kBlock)
      orthonormalize(at, std::min(kBlock, size + rows - at), 0, nullptr);
  }

  void step(int64_t processed, int64_t size) {
    const int64_t width = size - processed;
    for (int64_t i = 0; i < width; i += kSlice) {
      const int64_t b = std::min(kSlice, width - i);
      product(s_.a, s_.m, v(processed + i), b, s_.p + (processed + i) * s_.m, s_.m, v(size + i), false);
    }
    // Beside the two blocks before, the products have components of the size of rounding only, of most subspaces.
    const int64_t from = std::max<int64_t>(0, processed - width);
    for (int64_t i = 0; i < width; i += kBlock)
      orthonormalize(size + i, std::min(kBlock, width - i), from, s_.h + processed + i);
  }

private:
  float* v(int64_t row) const { return s_.v + row * n_; }

  /// p = v a^T; x = p a, or x -= p a with `subtract`.
  void product(const float* a, int64_t m, const float* rows, int64_t b, float* p, int64_t stride, float* x,
               bool subtract) {
    float* work = work_.at_least(gram_product_work(m, n_, b));
    gram_product(a, m, n_, rows, b, p, stride, subtract, subtract ? -1.0f : 1.0f, x, work);
  }

  /// Subtracts from b rows of v at `at` their components along the rows `from` to `to`, and adds these to columns of h.
  /// Returns whether they were small.
  bool project(int64_t from, int64_t to, int64_t at, int64_t b, double* columns) {
    const int64_t rows = to - from;
    if (rows <= 0) return true;
    float* coefficients = coefficients_.at_least(b * rows);
    product(v(from), rows, v(at), b, coefficients, rows, v(at), true);
    bool small = true;
    for (int64_t j = 0; j < b; ++j) {
      const float* c = coefficients + j * rows;
      double square = 0;
      for (int64_t i = 0; i < rows; ++i) square += double(c[i]) * c[i];
      small = small && square <= double(kSmall) * kSmall * norm2(at + j);
      for (int64_t i = 0; columns && i < rows; ++i) columns[(from + i) * s_.capacity + j] += c[i];
    }
    return small;
  }

  /// Makes b rows of v at `at` orthonormal, also to all before; columns of h take the coefficients.
  void orthonormalize(int64_t at, int64_t b, int64_t from, double* columns) {
    float before[kBlock];
    for (int64_t j = 0; j < b; ++j) {
      before[j] = std::sqrt(norm2(at + j));
      for (int64_t i = 0; columns && i < at + b; ++i) columns[i * s_.capacity + j] = 0;
    }
    for (int pass = 0; pass < kPasses; ++pass)
      if (project(pass == 0 ? from : 0, at, at, b, columns) && pass > 0) break;
    for (int64_t j = 0; j < b; ++j) {
      double* column = columns ? columns + j : nullptr;
      const float whole = std::sqrt(norm2(at + j));
      for (int64_t i = 0; i < j; ++i) {
        const float c = dot(v(at + i), v(at + j));
        add(-c, v(at + i), v(at + j));
        if (column) column[(at + i) * s_.capacity] += c;
      }
      float left = std::sqrt(norm2(at + j));
      if (left > kLost * before[j] && left < kCancelled * whole) {
        project(0, at + j, at + j, 1, column);
        left = std::sqrt(norm2(at + j));
      }
      if (left > kLost * before[j]) {
        if (column) column[(at + j) * s_.capacity] = left;
      } else {
        left = randomize(at + j);
      }
      scale(1 / left, v(at + j));
    }
  }

  /// Fills a row with pseudorandom numbers orthogonal to all rows before; returns its norm.
  float randomize(int64_t row) {
    uint64_t state = uint64_t(row) + 1;
    for (int64_t i = 0; i < n_; ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      v(row)[i] = float(int32_t(state >> 32)) * 0x1p-31f;
    }
    for (int pass = 0; pass < 3; ++pass) project(0, row, row, 1, nullptr);
    return std::sqrt(norm2(row));
  }

  // These take a few percent of the time, on any instruction set.
  float dot(const float* x, const float* y) const {
    float sums[16] = {}, total = 0;
    int64_t i = 0;
    for (; i + 16 <= n_; i += 16)
      for (int u = 0; u < 16; ++u) sums[u] += x[i + u] * y[i + u];
    for (; i < n_; ++i) total += x[i] * y[i];
    for (float sum : sums) total += sum;
    return total;
  }
  void add(float s, const float* x, float* y) const {
    for (int64_t i = 0; i < n_; ++i) y[i] += s * x[i];
  }
  void scale(float s, float* x) const {
    for (int64_t i = 0; i < n_; ++i) x[i] *= s;
  }
  float norm2(int64_t row) const { return dot(v(row), v(row)); }

  const KrylovSpace s_;
  const int64_t n_;
  Scratch work_, coefficients_;
};

} // namespace

void krylov_extend(const KrylovSpace& space, int64_t size, int64_t rows) { Krylov(space).extend(size, rows); }

void krylov_steps(const KrylovSpace& space, int64_t processed, int64_t size, int64_t steps) {
  Krylov krylov(space);
  for (int64_t i = 0; i < steps; ++i) {
    krylov.step(processed, size);
    const int64_t width = size - processed;
    processed = size;
    size += width;
  }
}

} // namespace lc::cpu
