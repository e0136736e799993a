// Kernels with one defect each: the tests of the emulation assert that each is caught. No build but theirs has them.
//
// x is 512 floats with x[i] = i, y 512 floats of zeros; both arrays end where their allocations end.
#include "rt.h"

namespace lc::cuda::planted {

int count();
const char* name(int number);
void run(int number, const float* x, float* y);

namespace {

constexpr int kFloats = 512;
constexpr unsigned kAllLanes = 0xffffffff;

__global__ void missing_barrier(const float* x, float* y) {
  LC_SHARED(float, s, 128);
  const int t = threadIdx.x;
  s[t] = x[t];
  // missing: __syncthreads();
  y[t] = s[127 - t];
}

__global__ void missing_second_barrier(const float* x, float* y) {
  LC_SHARED(float, s, 128);
  const int t = threadIdx.x;
  for (int i = 0; i < 4; ++i) {
    s[t] = x[128 * i + t];
    __syncthreads();
    y[t] += s[(t + 64) % 128];
    // missing: __syncthreads(), before the next round overwrites s
  }
}

__global__ void missing_syncwarp(const float* x, float* y) {
  LC_SHARED(float, s, 32);
  const int t = threadIdx.x;
  s[t] = x[t];
  // missing: __syncwarp();
  y[t] = s[t ^ 1];
}

__global__ void barrier_in_some_threads(const float* x, float* y) {
  if (threadIdx.x < 48) __syncthreads();
  y[threadIdx.x] = x[threadIdx.x];
}

__global__ void barrier_in_each_branch(const float* x, float* y) {
  if (threadIdx.x % 2 == 0)
    __syncthreads();
  else
    __syncthreads();
  y[threadIdx.x] = x[threadIdx.x];
}

__global__ void return_before_barrier(const float* x, float* y) {
  if (threadIdx.x >= 50) return;
  __syncthreads();
  y[threadIdx.x] = x[threadIdx.x];
}

__global__ void return_before_shuffle(const float* x, float* y) {
  if (threadIdx.x >= 20) return;
  y[threadIdx.x] = __shfl_down_sync(kAllLanes, x[threadIdx.x], 1);
}

__global__ void shuffle_in_each_branch(const float* x, float* y) {
  float v = x[threadIdx.x];
  if (threadIdx.x < 16)
    v += __shfl_xor_sync(kAllLanes, v, 1);
  else
    v += __shfl_xor_sync(kAllLanes, v, 2);
  y[threadIdx.x] = v;
}

__global__ void shuffle_caller_not_in_mask(const float* x, float* y) {
  y[threadIdx.x] = __shfl_xor_sync(0x0000ffff, x[threadIdx.x], 1);
}

__global__ void shuffle_source_not_in_mask(const float* x, float* y) {
  if (threadIdx.x < 16) y[threadIdx.x] = __shfl_sync(0x0000ffff, x[threadIdx.x], 20);
}

__global__ void deadlock(const float* x, float* y) {
  float v = x[threadIdx.x];
  if (threadIdx.x < 16) v = __shfl_sync(kAllLanes, v, 0);
  __syncthreads();
  y[threadIdx.x] = v;
}

__global__ void static_shared_out_of_bounds(const float* x, float* y) {
  LC_SHARED(float, s, 64);
  if (threadIdx.x == 0) s[0] = 0;
  s[threadIdx.x + 1] = x[threadIdx.x]; // 64 threads, 64 floats
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x];
}

__global__ void dynamic_shared_out_of_bounds(const float* x, float* y) {
  LC_DYN_SHARED(float, s);
  if (threadIdx.x == 0) s[0] = 0;
  s[threadIdx.x + 1] = x[threadIdx.x]; // 64 threads, 64 floats
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x];
}

__global__ void dynamic_shared_written_into_static(const float* x, float* y) {
  LC_DYN_SHARED(float, s);
  LC_SHARED(float, other, 64);
  other[threadIdx.x] = 0;
  s[threadIdx.x + 64] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = other[threadIdx.x];
}

__global__ void global_out_of_bounds(const float* x, float* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i <= n) y[i] = x[i % n];
}

__global__ void misaligned_float4(const float* x, float* y) {
  y[threadIdx.x] = reinterpret_cast<const float4*>(x + 1)[threadIdx.x].x;
}

__global__ void uninitialised_shared(const float* x, float* y) {
  LC_SHARED(float, s, 64);
  if (threadIdx.x < 63) s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x];
}

__global__ void shared_of_the_block_before(const float* x, float* y) {
  LC_SHARED(float, s, 32);
  if (blockIdx.x == 0) s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[32 * blockIdx.x + threadIdx.x] = s[threadIdx.x];
}

__global__ void too_much_static_shared(const float* x, float* y) {
  LC_SHARED(float, a, 8192);
  LC_SHARED(float, b, 8192);
  a[threadIdx.x] = b[threadIdx.x] = x[threadIdx.x];
  y[threadIdx.x] = a[threadIdx.x] + b[threadIdx.x];
}

__global__ void blocks_write_the_same(const float*, float* y) { y[threadIdx.x] = static_cast<float>(blockIdx.x); }

__global__ void int_overflow(const float*, float* y, int rows, int cols) {
  y[threadIdx.x] = static_cast<float>(rows * cols + static_cast<int>(threadIdx.x));
}

struct Bug {
  const char* name;
  void (*run)(const float* x, float* y);
};

template <auto kKernel, int kGrid, int kBlock, int kShared = 0> void plain_launch(const float* x, float* y) {
  launch({kGrid, kBlock, kShared}, kKernel, x, y);
}

const Bug kBugs[] = {
    {"missing_barrier", plain_launch<missing_barrier, 1, 128>},
    {"missing_second_barrier", plain_launch<missing_second_barrier, 1, 128>},
    {"missing_syncwarp", plain_launch<missing_syncwarp, 1, 32>},
    {"barrier_in_some_threads", plain_launch<barrier_in_some_threads, 1, 64>},
    {"barrier_in_each_branch", plain_launch<barrier_in_each_branch, 1, 64>},
    {"return_before_barrier", plain_launch<return_before_barrier, 1, 64>},
    {"return_before_shuffle", plain_launch<return_before_shuffle, 1, 32>},
    {"shuffle_in_each_branch", plain_launch<shuffle_in_each_branch, 1, 32>},
    {"shuffle_caller_not_in_mask", plain_launch<shuffle_caller_not_in_mask, 1, 32>},
    {"shuffle_source_not_in_mask", plain_launch<shuffle_source_not_in_mask, 1, 32>},
    {"deadlock", plain_launch<deadlock, 1, 64>},
    {"static_shared_out_of_bounds", plain_launch<static_shared_out_of_bounds, 1, 64>},
    {"dynamic_shared_out_of_bounds", plain_launch<dynamic_shared_out_of_bounds, 1, 64, 256>},
    {"dynamic_shared_written_into_static", plain_launch<dynamic_shared_written_into_static, 1, 64, 256>},
    {"global_out_of_bounds",
     [](const float* x, float* y) { launch({kFloats / 64 + 1, 64}, global_out_of_bounds, x, y, kFloats); }},
    {"misaligned_float4", plain_launch<misaligned_float4, 1, 8>},
    {"uninitialised_shared", plain_launch<uninitialised_shared, 1, 64>},
    {"shared_of_the_block_before", plain_launch<shared_of_the_block_before, 2, 32>},
    {"too_much_static_shared", plain_launch<too_much_static_shared, 1, 64>},
    {"too_much_dynamic_shared", plain_launch<missing_syncwarp, 1, 32, 228 * 1024>},
    {"blocks_write_the_same", plain_launch<blocks_write_the_same, 8, 32>},
    {"empty_grid", plain_launch<missing_syncwarp, 0, 32>},
    {"too_many_threads", plain_launch<missing_syncwarp, 1, 1025>},
    {"int_overflow", [](const float* x, float* y) { launch({1, 1}, int_overflow, x, y, 65536, 65536); }},
};

} // namespace

int count() { return static_cast<int>(sizeof kBugs / sizeof kBugs[0]); }

const char* name(int number) { return kBugs[number].name; }

void run(int number, const float* x, float* y) { kBugs[number].run(x, y); }

} // namespace lc::cuda::planted
