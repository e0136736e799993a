// CUDA on the host: what a .cu file needs of the CUDA language and runtime, as plain C++ for g++ -std=c++20 -DLC_EMU.
//
// A launch runs its blocks one after the other, and each CUDA thread of a block as a fiber that gives way only at
// barriers and warp collectives. Everything happens on the OS thread that launches; launches from several OS threads
// take turns. Memory is host memory, streams are ignored, and a launch has finished when it returns.
//
// What it reports, as lc::emu::Error: divergent barriers and collectives, masks that leave out a caller or a lane that
// is read, deadlocks, threads that end while others wait for them, too much shared memory, impossible grids. What only
// shows in the results: missing barriers (run each test under several seeds: the results differ) and reads of shared
// memory that was never written (it holds Options::poison). What ASan and UBSan add: accesses outside global or shared
// arrays, misaligned vector accesses, integer overflow. What is not seen: data races that no order of whole steps
// between barriers brings out, weak memory order, and loops that wait for another thread by spinning: those hang.
//
// A barrier or collective is known by the file, line and column of its call. Two branches that reach one through the
// same helper function look like one call.
#pragma once
#include "../error.h"
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <type_traits>

// ---- The language -------------------------------------------------------------------------------------------------

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __forceinline__ inline __attribute__((always_inline))
#define __shared__ static_assert(false, "shared memory is declared with LC_SHARED or LC_DYN_SHARED")

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// may_alias, because CUDA code reads a float array through a float4 pointer and nvcc lets it.
#define LC_EMU_VECTORS(T, name, size)                                                                                  \
  struct __attribute__((may_alias, aligned(2 * (size)))) name##2 { T x, y; };                                          \
  struct __attribute__((may_alias, aligned((size) < 4 ? 4 * (size) : 16))) name##4 { T x, y, z, w; };                  \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                                           \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
LC_EMU_VECTORS(signed char, char, 1)
LC_EMU_VECTORS(unsigned char, uchar, 1)
LC_EMU_VECTORS(short, short, 2)
LC_EMU_VECTORS(unsigned short, ushort, 2)
LC_EMU_VECTORS(int, int, 4)
LC_EMU_VECTORS(unsigned, uint, 4)
LC_EMU_VECTORS(float, float, 4)
LC_EMU_VECTORS(double, double, 8)
#undef LC_EMU_VECTORS

// ---- half and bfloat16: storage and conversion (round to nearest even), no arithmetic of their own ------------------

struct __half {
  uint16_t bits;
  __half() = default;
  __half(float f) : bits(std::bit_cast<uint16_t>(static_cast<_Float16>(f))) {}
  operator float() const { return static_cast<float>(std::bit_cast<_Float16>(bits)); }
};
struct __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  __nv_bfloat16(float f) {
    const uint32_t u = std::bit_cast<uint32_t>(f);
    bits = f != f ? 0x7fff : static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16);
  }
  operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};
using half = __half;
using nv_bfloat16 = __nv_bfloat16;
struct __attribute__((may_alias, aligned(4))) __half2 {
  __half x, y;
};
struct __attribute__((may_alias, aligned(4))) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
using half2 = __half2;
using nv_bfloat162 = __nv_bfloat162;
inline __half __float2half(float f) { return f; }
inline __half __float2half_rn(float f) { return f; }
inline float __half2float(__half h) { return h; }
inline __nv_bfloat16 __float2bfloat16(float f) { return f; }
inline __nv_bfloat16 __float2bfloat16_rn(float f) { return f; }
inline float __bfloat162float(__nv_bfloat16 h) { return h; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline float2 __half22float2(__half2 h) { return {h.x, h.y}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
inline float2 __bfloat1622float2(__nv_bfloat162 h) { return {h.x, h.y}; }

// ---- The scheduler (emu.cc) ---------------------------------------------------------------------------------------

namespace lc::emu {

/// A defect of the kernel that runs. The launch is abandoned and its output is unspecified; the next launch is sound.
/// The stacks of the threads that had not finished are dropped, not unwound.
struct Error : lc::Error {
  using lc::Error::Error;
};

struct Options {
  /// The order of the threads and of the blocks: 0 ascending, 1 descending, else shuffled by this seed: the blocks once
  /// a launch, the threads before each pass over them. A seed gives the same order each time.
  uint64_t seed = 0;
  /// The byte that fills shared memory when a block starts.
  unsigned char poison = 0xcb;
  /// Shared memory of one block, static and dynamic: 227 KiB on sm_90 and sm_100, 163 on sm_80, 99 on sm_86 and sm_89.
  size_t max_shared = 227 * 1024;
};

/// The options of the launches to come. Not to be changed while another OS thread launches.
Options& options();
inline void set_seed(uint64_t seed) { options().seed = seed; }

/// Launches so far, failed ones included: a test can see that a kernel ran, or that none did.
uint64_t launch_count();

using Site = std::source_location;
#define LC_EMU_SITE ::lc::emu::Site site = ::lc::emu::Site::current()

/// Runs body() once per thread of the grid. Rethrows what a thread throws.
void run(dim3 grid, dim3 block, size_t dynamic_shared, Site site, const std::function<void()>& body);

/// The running CUDA thread; null on the host.
struct Thread {
  uint3 thread_idx, block_idx;
  unsigned lane;
};
extern Thread* current;
extern dim3 grid_dim, block_dim;

/// The block's array that is declared at `key`, and the block's dynamic shared memory: 16-byte aligned, inaccessible to
/// the left and right under ASan.
void* static_shared(const void* key, size_t bytes);
void* dynamic_shared();

/// Waits for the whole block; returns how many of its threads passed a true predicate.
int block_barrier(bool predicate, const char* kind, Site site);

/// What the lanes of a warp left at a meeting; only the lanes in `present` left anything.
struct Deposits {
  static constexpr size_t kBytes = 64;
  uint32_t present;
  alignas(16) unsigned char bytes[32][kBytes];

  template <class T> T get(unsigned lane) const {
    T value;
    std::memcpy(&value, bytes[lane], sizeof value);
    return value;
  }
};

/// Waits for all lanes named by `mask`, each leaving a value. The result is valid until the caller waits again.
const Deposits& warp_meeting(uint32_t mask, const void* value, size_t bytes, const char* kind, Site site);

[[noreturn]] void fail_shuffle_source(uint32_t mask, int source, const char* kind, Site site);

/// `source` is the lane to read; a lane without one (`has_source` false) still takes part and keeps its own value.
template <class T> T shuffle(uint32_t mask, T value, int source, bool has_source, const char* kind, Site site) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  const Deposits& all = warp_meeting(mask, &value, sizeof value, kind, site);
  if (!has_source) return value;
  if ((all.present >> source & 1) == 0) fail_shuffle_source(mask, source, kind, site);
  return all.get<T>(static_cast<unsigned>(source));
}

/// Folds what the lanes in `mask` pass, in ascending lane order.
template <class T, class F> T reduce(uint32_t mask, T value, const char* kind, Site site, F fold) {
  const Deposits& all = warp_meeting(mask, &value, sizeof value, kind, site);
  unsigned lane = static_cast<unsigned>(std::countr_zero(all.present));
  T result = all.get<T>(lane);
  while (++lane < 32)
    if (all.present >> lane & 1) result = fold(result, all.get<T>(lane));
  return result;
}

/// The bounds of the caller's group of `width` lanes.
inline int group_begin(int width) { return static_cast<int>(current->lane) & -width; }
inline int group_end(int width) { return group_begin(width) + width; }

/// A read-modify-write; fibers do not give way inside, so it is atomic. Returns the old value.
template <class T, class F> T update(T* address, F next) {
  const T old = *address;
  *address = next(old);
  return old;
}
template <class T> using Same = std::type_identity_t<T>; // a parameter that converts to T and does not decide it

} // namespace lc::emu

// ---- Threads, barriers, warp collectives --------------------------------------------------------------------------

#define threadIdx (::lc::emu::current->thread_idx)
#define blockIdx (::lc::emu::current->block_idx)
#define blockDim (::lc::emu::block_dim)
#define gridDim (::lc::emu::grid_dim)
constexpr int warpSize = 32;

inline void __syncthreads(LC_EMU_SITE) { lc::emu::block_barrier(false, "__syncthreads", site); }
inline int __syncthreads_count(int p, LC_EMU_SITE) { return lc::emu::block_barrier(p, "__syncthreads_count", site); }
inline int __syncthreads_or(int p, LC_EMU_SITE) { return lc::emu::block_barrier(p, "__syncthreads_or", site) > 0; }
inline int __syncthreads_and(int p, LC_EMU_SITE) { return lc::emu::block_barrier(!p, "__syncthreads_and", site) == 0; }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __syncwarp(unsigned mask = ~0u, LC_EMU_SITE) { lc::emu::warp_meeting(mask, &mask, 0, "__syncwarp", site); }

template <class T> T __shfl_sync(unsigned mask, T v, int lane, int width = 32, LC_EMU_SITE) {
  return lc::emu::shuffle(mask, v, lc::emu::group_begin(width) + (lane & (width - 1)), true, "__shfl_sync", site);
}
template <class T> T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32, LC_EMU_SITE) {
  const int from = static_cast<int>(lc::emu::current->lane - delta);
  return lc::emu::shuffle(mask, v, from, from >= lc::emu::group_begin(width), "__shfl_up_sync", site);
}
template <class T> T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32, LC_EMU_SITE) {
  const int from = static_cast<int>(lc::emu::current->lane + delta);
  return lc::emu::shuffle(mask, v, from, from < lc::emu::group_end(width), "__shfl_down_sync", site);
}
template <class T> T __shfl_xor_sync(unsigned mask, T v, int flip, int width = 32, LC_EMU_SITE) {
  const int from = static_cast<int>(lc::emu::current->lane) ^ flip; // a lower group may be read, a higher one may not
  return lc::emu::shuffle(mask, v, from, from < lc::emu::group_end(width), "__shfl_xor_sync", site);
}

inline unsigned __ballot_sync(unsigned mask, int p, LC_EMU_SITE) {
  const unsigned vote = p ? 1u << lc::emu::current->lane : 0;
  return lc::emu::reduce(mask, vote, "__ballot_sync", site, std::bit_or<unsigned>());
}
inline int __any_sync(unsigned mask, int p, LC_EMU_SITE) {
  return lc::emu::reduce(mask, p != 0, "__any_sync", site, std::logical_or<bool>());
}
inline int __all_sync(unsigned mask, int p, LC_EMU_SITE) {
  return lc::emu::reduce(mask, p != 0, "__all_sync", site, std::logical_and<bool>());
}
template <class T> unsigned __match_any_sync(unsigned mask, T v, LC_EMU_SITE) {
  const lc::emu::Deposits& all = lc::emu::warp_meeting(mask, &v, sizeof v, "__match_any_sync", site);
  unsigned equal = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    if ((all.present >> lane & 1) && std::memcmp(all.bytes[lane], &v, sizeof v) == 0) equal |= 1u << lane;
  return equal;
}
#define LC_EMU_REDUCE(name, expression)                                                                                \
  template <class T> T name(unsigned mask, T v, LC_EMU_SITE) {                                                         \
    return lc::emu::reduce(mask, v, #name, site, [](T a, T b) -> T { return expression; });                            \
  }
LC_EMU_REDUCE(__reduce_add_sync, a + b)
LC_EMU_REDUCE(__reduce_min_sync, a < b ? a : b)
LC_EMU_REDUCE(__reduce_max_sync, a < b ? b : a)
LC_EMU_REDUCE(__reduce_and_sync, a& b)
LC_EMU_REDUCE(__reduce_or_sync, a | b)
LC_EMU_REDUCE(__reduce_xor_sync, a ^ b)
#undef LC_EMU_REDUCE

// ---- Atomics ------------------------------------------------------------------------------------------------------

#define LC_EMU_ATOMIC(name, expression)                                                                                \
  template <class T> T name(T* address, lc::emu::Same<T> v) {                                                          \
    return lc::emu::update(address, [v](T old) -> T { return expression; });                                           \
  }
LC_EMU_ATOMIC(atomicAdd, old + v)
LC_EMU_ATOMIC(atomicSub, old - v)
LC_EMU_ATOMIC(atomicMin, v < old ? v : old)
LC_EMU_ATOMIC(atomicMax, old < v ? v : old)
LC_EMU_ATOMIC(atomicAnd, old& v)
LC_EMU_ATOMIC(atomicOr, old | v)
LC_EMU_ATOMIC(atomicXor, old ^ v)
LC_EMU_ATOMIC(atomicInc, old >= v ? 0 : old + 1)
#undef LC_EMU_ATOMIC
template <class T> T atomicExch(T* address, lc::emu::Same<T> v) {
  return lc::emu::update(address, [v](T) { return v; });
}
template <class T> T atomicCAS(T* address, lc::emu::Same<T> expected, lc::emu::Same<T> v) {
  return lc::emu::update(address, [=](T old) { return old == expected ? v : old; });
}

// ---- Loads, bits, arithmetic --------------------------------------------------------------------------------------

template <class T> T __ldg(const T* p) { return *p; }
template <class T> T __ldca(const T* p) { return *p; }
template <class T> T __ldcg(const T* p) { return *p; }
template <class T> T __ldcs(const T* p) { return *p; }
template <class T> void __stcg(T* p, lc::emu::Same<T> v) { *p = v; }
template <class T> void __stcs(T* p, lc::emu::Same<T> v) { *p = v; }

inline int __popc(unsigned v) { return std::popcount(v); }
inline int __popcll(unsigned long long v) { return std::popcount(v); }
inline int __clz(int v) { return std::countl_zero(static_cast<unsigned>(v)); }
inline int __clzll(long long v) { return std::countl_zero(static_cast<unsigned long long>(v)); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __ffsll(long long v) { return __builtin_ffsll(v); }
inline unsigned __float_as_uint(float v) { return std::bit_cast<unsigned>(v); }
inline float __uint_as_float(unsigned v) { return std::bit_cast<float>(v); }
inline int __float_as_int(float v) { return std::bit_cast<int>(v); }
inline float __int_as_float(int v) { return std::bit_cast<float>(v); }
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>(((static_cast<uint64_t>(high) << 32 | low) << (shift & 31)) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}

using std::max;
using std::min;
inline float rsqrtf(float v) { return 1.0f / std::sqrt(v); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float v) { return std::exp(v); }

// ---- The runtime API ----------------------------------------------------------------------------------------------

using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInsufficientDriver = 35, cudaErrorNoDevice = 100 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice, cudaMemcpyDefault };
inline const char* cudaGetErrorString(cudaError_t e) { return e == cudaSuccess ? "no error" : "emulated error"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* p, int byte, size_t n, cudaStream_t = nullptr) {
  if (n > 0) std::memset(p, byte, n);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t n, cudaMemcpyKind, cudaStream_t = nullptr) {
  if (n > 0) std::memcpy(to, from, n);
  return cudaSuccess;
}
