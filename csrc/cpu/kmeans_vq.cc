#include "../kmeans_vq.h"

#include "simd8.h"

namespace lc::LC_ISA {
namespace {

constexpr int kBlock = kKmeansVqBlock, kVectors = kBlock / kLanes;

// f.template operator()<d>(): d is known to the compiler in the inner loops.
template <class F> LC_INLINE auto with_dim(int d, const F& f) {
  if (d == 2) return f.template operator()<2>();
  if (d == 4) return f.template operator()<4>();
  return f.template operator()<8>();
}

// A vector of kDim floats, and of doubles.
template <int kDim> struct Row;
template <> struct Row<2> {
  typedef float Floats __attribute__((vector_size(8)));
  typedef double Doubles __attribute__((vector_size(16)));
};
template <> struct Row<4> {
  typedef float Floats __attribute__((vector_size(16)));
  typedef double Doubles __attribute__((vector_size(32)));
};
template <> struct Row<8> {
  typedef float Floats __attribute__((vector_size(32)));
  typedef double Doubles __attribute__((vector_size(64)));
};

// Eight vectors of kDim values, one after the other, become kDim columns of eight.
template <int kDim> LC_INLINE void to_columns(V8F (&r)[kDim]) {
  if constexpr (kDim == 8) {
    transpose8(r);
  } else {
    for (int step = 1; step < kDim; step *= 2) { // the even and the odd places of what is left to be told apart
      V8F next[kDim];
      for (int i = 0; i < kDim; i += 2) {
        next[i / 2] = __builtin_shufflevector(r[i], r[i + 1], 0, 2, 4, 6, 8, 10, 12, 14);
        next[(kDim + i) / 2] = __builtin_shufflevector(r[i], r[i + 1], 1, 3, 5, 7, 9, 11, 13, 15);
      }
      for (int i = 0; i < kDim; ++i) r[i] = next[i];
    }
  }
}

// The codeword is broadcast and meets 32 vectors at a time. No fma: the codes are to agree on all instruction sets.
template <int kDim> LC_INLINE void assign_block(const float* block, const float* codebook, const float* norms, int k,
                                                VI (&codes)[kVectors]) {
  VF best[kVectors];
  for (int u = 0; u < kVectors; ++u) best[u] = splat(__builtin_inff()), codes[u] = VI{};
  for (int j = 0; j < k; ++j) {
    VF score[kVectors];
    for (int u = 0; u < kVectors; ++u) score[u] = splat(norms[j]);
    for (int i = 0; i < kDim; ++i) {
      const VF c = splat(codebook[j * kDim + i]);
      for (int u = 0; u < kVectors; ++u) score[u] -= c * load<VF>(block + i * kBlock + u * kLanes);
    }
    for (int u = 0; u < kVectors; ++u) {
      const VI better = score[u] < best[u];
      best[u] = better ? score[u] : best[u];
      codes[u] = better ? splat(j) : codes[u];
    }
  }
}

} // namespace

void kmeans_vq_block(const float* x, int64_t n, int d, float unit, const float* center, float* blocks) {
  with_dim(d, [&]<int kDim>() {
    int64_t at = 0;
    for (; at + 8 <= n; at += 8) {
      V8F r[kDim];
      for (int i = 0; i < kDim; ++i) r[i] = load<V8F>(x + at * kDim + 8 * i);
      to_columns<kDim>(r);
      float* to = blocks + at / kBlock * kBlock * kDim + at % kBlock;
      for (int i = 0; i < kDim; ++i) store(to + i * kBlock, splat8(unit) * r[i] - splat8(center[i]));
    }
    for (; at % kBlock || at < n; ++at)
      for (int i = 0; i < kDim; ++i)
        blocks[at / kBlock * kBlock * kDim + i * kBlock + at % kBlock] =
            at < n ? unit * x[at * kDim + i] - center[i] : 0.0f;
  });
}

void kmeans_vq_assign(const float* blocks, int64_t n, int d, const float* codebook, const float* norms, int k,
                      uint8_t* codes) {
  with_dim(d, [&]<int kDim>() {
    for (int64_t at = 0; at < n; at += kBlock) {
      VI found[kVectors];
      assign_block<kDim>(blocks + at * kDim, codebook, norms, k, found);
      uint8_t bytes[kBlock];
      for (int u = 0; u < kVectors; ++u) store(bytes + u * kLanes, low_bytes(found[u]));
      if (n - at >= kBlock)
        __builtin_memcpy(codes + at, bytes, kBlock);
      else
        __builtin_memcpy(codes + at, bytes, n - at);
    }
  });
}

double kmeans_vq_update(const float* x, const float* h, int64_t n, int d, const uint8_t* codes, const float* codebook,
                        double* sums, double* mass) {
  return with_dim(d, [&]<int kDim>() {
    using Narrow = typename Row<kDim>::Floats;
    using Wide = typename Row<kDim>::Doubles;
    Wide error{};
    for (int64_t i = 0; i < n; ++i) {
      const int c = codes[i];
      const Wide v = __builtin_convertvector(load<Narrow>(x + i * kDim), Wide);
      const Wide e = v - __builtin_convertvector(load<Narrow>(codebook + c * kDim), Wide);
      Wide sum = load<Wide>(sums + c * kDim);
      if (h) {
        const double weight = double(h[i]);
        error += weight * e * e, sum += weight * v, mass[c] += weight;
      } else {
        error += e * e, sum += v, mass[c] += 1;
      }
      store(sums + c * kDim, sum);
    }
    double total = 0;
    for (int i = 0; i < kDim; ++i) total += error[i];
    return total;
  });
}

double kmeans_vq_nearest(const float* blocks, const float* h, int64_t n, int d, const float* center, float* nearest) {
  return with_dim(d, [&]<int kDim>() {
    double total = 0;
    for (int64_t at = 0; at < n; at += kBlock) {
      float squares[kBlock];
      for (int u = 0; u < kVectors; ++u) {
        VF square{};
        for (int i = 0; i < kDim; ++i) {
          const VF e = load<VF>(blocks + at * kDim + i * kBlock + u * kLanes) - splat(center[i]);
          square += e * e;
        }
        store(squares + u * kLanes, square);
      }
      const int left = n - at < kBlock ? int(n - at) : kBlock;
      for (int j = 0; j < left; ++j) {
        const float near = squares[j] < nearest[at + j] ? squares[j] : nearest[at + j];
        nearest[at + j] = near;
        total += h ? double(h[at + j]) * double(near) : double(near);
      }
    }
    return total;
  });
}

} // namespace lc::LC_ISA
