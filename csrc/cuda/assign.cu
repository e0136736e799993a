// Nearest centre in a sorted codebook: one pass over x, four elements a thread and turn.
//
//   x      | head |  float4  |  float4  | ...  | tail |     head: up to 3 elements before the first 16-byte boundary
//   codes  | head |  uchar4  |  uchar4  | ...  | tail |     tail: up to 3 elements after the last whole float4
//
// The kernel moves 5 bytes an element, so a search may cost little before it shows: up to 15 midpoints stand in
// registers and are all compared; more stand in shared memory as a search tree.
#include "../assign.h"
#include "rt.h"

namespace lc::cuda {
namespace {

constexpr int kThreads = 256;

/// Counts the midpoints below x, one by one: no memory access and no dependent chain. k <= kMids + 1.
template <int kMids> struct Counter {
  float mids[kMids];

  __device__ void load(const float* __restrict__ from, int k) {
    LC_UNROLL
    for (int j = 0; j < kMids; ++j) mids[j] = j < k - 1 ? from[j] : INFINITY; // no x is above infinity
  }
  __device__ unsigned char operator()(float x) const {
    int below = 0;
    LC_UNROLL
    for (int j = 0; j < kMids; ++j) below += mids[j] < x;
    return static_cast<unsigned char>(below);
  }
};

/// A complete binary search tree, breadth first: the children of node i are 2i and 2i + 1, the root is node 1, and the
/// leaf reached is kLeaves + the count. The nodes of one level are neighbours, so lanes that read different nodes of it
/// mostly meet different banks; in a sorted array they are a power of two apart, in the same bank. k <= kLeaves.
template <int kLevels> struct Tree {
  static constexpr int kLeaves = 1 << kLevels;
  const float* nodes;

  __device__ void load(const float* __restrict__ from, int k) {
    LC_SHARED(float, shared, kLeaves);
    for (int i = threadIdx.x; i < kLeaves; i += blockDim.x) {
      if (i == 0) continue;
      const int level = 31 - __clz(i);
      const int j = ((2 * (i - (1 << level)) + 1) << (kLevels - 1 - level)) - 1; // rank of node i in sorted order
      shared[i] = j < k - 1 ? from[j] : INFINITY;
    }
    __syncthreads();
    nodes = shared;
  }
  __device__ unsigned char operator()(float x) const {
    int i = 1;
    LC_UNROLL
    for (int level = 0; level < kLevels; ++level) i = 2 * i + (nodes[i] < x);
    return static_cast<unsigned char>(i - kLeaves);
  }
};

template <class Search> __global__ void __launch_bounds__(kThreads)
    assign_kernel(const float* __restrict__ x, int64_t n, const float* __restrict__ mids, int k, int head,
                  bool codes_aligned, uint8_t* __restrict__ codes) {
  Search code;
  code.load(mids, k);

  const auto* x4 = reinterpret_cast<const float4*>(x + head);
  const int64_t quads = (n - head) / 4;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t q = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; q < quads; q += stride) {
    const float4 v = x4[q];
    const uchar4 c = make_uchar4(code(v.x), code(v.y), code(v.z), code(v.w));
    uint8_t* out = codes + head + 4 * q;
    if (codes_aligned) {
      *reinterpret_cast<uchar4*>(out) = c;
    } else {
      out[0] = c.x;
      out[1] = c.y;
      out[2] = c.z;
      out[3] = c.w;
    }
  }

  const int tail = static_cast<int>((n - head) % 4);
  const int t = threadIdx.x;
  if (blockIdx.x == 0 && t < head + tail) {
    const int64_t i = t < head ? t : n - tail + (t - head);
    codes[i] = code(x[i]);
  }
}

} // namespace

void assign(const float* x, int64_t n, const float* mids, int k, uint8_t* codes, void* stream) {
  LC_CHECK(n >= 0, "n =", n);
  LC_CHECK(1 <= k && k <= 256, "k =", k);
  if (n == 0) return; // a grid of no blocks is an error

  const auto address = reinterpret_cast<uintptr_t>(x);
  LC_CHECK(address % sizeof(float) == 0, "x =", x);
  const int head = static_cast<int>(std::min<int64_t>(n, (16 - address % 16) % 16 / sizeof(float)));
  const bool codes_aligned = (reinterpret_cast<uintptr_t>(codes) + head) % 4 == 0;
  const Launch how{grid_for(n, 4 * kThreads), kThreads, 0, stream};
  const auto run = [&](auto kernel) { launch(how, kernel, x, n, mids, k, head, codes_aligned, codes); };

  if (k <= 2) return run(assign_kernel<Counter<1>>);
  if (k <= 4) return run(assign_kernel<Counter<3>>);
  if (k <= 8) return run(assign_kernel<Counter<7>>);
  if (k <= 16) return run(assign_kernel<Counter<15>>);
  if (k <= 32) return run(assign_kernel<Tree<5>>);
  if (k <= 64) return run(assign_kernel<Tree<6>>);
  if (k <= 128) return run(assign_kernel<Tree<7>>);
  return run(assign_kernel<Tree<8>>);
}

} // namespace lc::cuda
