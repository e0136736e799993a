// CUDA, or its emulation on the host: the one header that a csrc/cuda/*.cu file includes besides its own contract.
//
// The same .cu file is compiled by nvcc, and by g++ -DLC_EMU for machines without a GPU. So it never asks which of the
// two it is, launches through launch(), declares shared memory with LC_SHARED or LC_DYN_SHARED, unrolls with LC_UNROLL,
// and keeps the rules that let the emulation find its defects: warp collectives by full warps, no return before a
// barrier, no spinning.
#pragma once
#include "../error.h"
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <source_location>

#ifdef LC_EMU

#include "emu.h"
#include <tuple>
#define LC_SHARED(T, name, N)                                                                                          \
  auto& name = *static_cast<T(*)[N]>(::lc::emu::static_shared(                                                         \
      [] {                                                                                                             \
        static char key; /* one per declaration and template instance, as the array itself */                          \
        return &key;                                                                                                   \
      }(),                                                                                                             \
      sizeof(T) * (N)))
#define LC_DYN_SHARED(T, name) T* name = static_cast<T*>(::lc::emu::dynamic_shared())
#define LC_UNROLL

#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

/// LC_SHARED(float, tile, 256): an array in static shared memory, 16-byte aligned, uninitialised; 48 KiB in all.
#define LC_SHARED(T, name, N) __shared__ __align__(16) T name[N]

/// LC_DYN_SHARED(float, tile): a pointer to the launch's `smem` bytes, 16-byte aligned, uninitialised.
#define LC_DYN_SHARED(T, name)                                                                                         \
  extern __shared__ __align__(16) unsigned char lc_dynamic_shared[];                                                   \
  T* name = reinterpret_cast<T*>(lc_dynamic_shared)

/// Before a loop over an array that must stay in registers.
#define LC_UNROLL _Pragma("unroll")

#endif

namespace lc::cuda {

/// Throws lc::Error unless `status`, the result of a call of the runtime API, is success.
inline void check(cudaError_t status, std::source_location where = std::source_location::current()) {
  if (status == cudaSuccess) return;
  cudaGetLastError(); // a launch error is also kept for the next one who asks, which would be torch
  std::ostringstream message;
  if (status == cudaErrorNoDevice || status == cudaErrorInsufficientDriver)
    message << "lc_ext: no CUDA device can be used on this machine: ";
  else
    message << "lc_ext: CUDA call failed: ";
  message << cudaGetErrorString(status) << " (error " << static_cast<int>(status) << ", " << where.file_name() << ":"
          << where.line() << ")";
  throw Error(message.str());
}

/// How to launch: {grid, block}, {grid, block, smem} or {grid, block, smem, stream}.
struct Launch {
  dim3 grid, block;
  size_t smem = 0;        ///< bytes of dynamic shared memory
  void* stream = nullptr; ///< a cudaStream_t
  std::source_location where = std::source_location::current();
};

/// Enqueues kernel(args...) and throws lc::Error if that fails; does not synchronise. A grid of no blocks is an error.
/// More than 48 KiB of shared memory must be dynamic memory alone: only `smem` above that raises the kernel's limit.
template <class... Parameters, class... Args>
void launch(const Launch& how, void (*kernel)(Parameters...), Args&&... args) {
  static_assert(sizeof...(Parameters) == sizeof...(Args), "as many arguments as the kernel has parameters");
#ifdef LC_EMU
  const std::tuple<Parameters...> values(static_cast<Parameters>(args)...);
  emu::run(how.grid, how.block, how.smem, how.where, [&] { std::apply(kernel, values); });
#else
  if (how.smem > 48 * 1024)
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(how.smem)),
          how.where);
  cudaLaunchConfig_t config{};
  config.gridDim = how.grid;
  config.blockDim = how.block;
  config.dynamicSmemBytes = how.smem;
  config.stream = static_cast<cudaStream_t>(how.stream);
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(args)...), how.where);
#endif
}

/// The largest grid of grid_for: more blocks than a GPU runs at once, few enough that loading what each block needs
/// does not add up. Not measured. Tiny in the emulation, so that small tests go round the grid-stride loop.
#ifdef LC_EMU
constexpr int64_t kMaxGrid = 8;
#else
constexpr int64_t kMaxGrid = 4096;
#endif

/// Blocks for a grid-stride loop over n items, per_block of them a block and turn: at least 1, at most kMaxGrid.
inline unsigned grid_for(int64_t n, int64_t per_block) {
  const int64_t blocks = n / per_block + (n % per_block != 0);
  return static_cast<unsigned>(blocks < 1 ? 1 : blocks > kMaxGrid ? kMaxGrid : blocks);
}

} // namespace lc::cuda
