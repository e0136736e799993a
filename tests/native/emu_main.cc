// The program of tests/test_cuda_emulation.py, linked with emu.cc, assign.cu and planted_bugs.cu:
//   emu_main bugs            the names of the planted bugs, in the order of their numbers
//   emu_main bug N SEED      runs one; prints "reported: <message>" or "output: <the 512 floats as hexadecimal bits>"
//   emu_main assign SEED     lc::cuda::assign against a loop, for many sizes, alignments and codebooks
//   emu_main features SEED   what emu.h defines, against what CUDA's manual says
// Exit status 0: all as expected; 1: a difference, printed; 2: wrong usage.
#include "assign.h"
#include "cuda/rt.h"
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <string>
#include <vector>

namespace lc::cuda::planted {
int count();
const char* name(int number);
void run(int number, const float* x, float* y);
} // namespace lc::cuda::planted

namespace {

int differences = 0;

void expect(bool holds, const std::string& what) {
  if (holds) return;
  ++differences;
  std::printf("does not hold: %s\n", what.c_str());
}
#define EXPECT(condition) expect((condition), #condition)

// ---- bug ----------------------------------------------------------------------------------------------------------

int run_bug(int number) {
  std::vector<float> x(512), y(512, 0.0f);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
  try {
    lc::cuda::planted::run(number, x.data(), y.data());
  } catch (const lc::emu::Error& e) {
    std::printf("reported: %s\n", e.what());
    return 0;
  }
  std::printf("output:");
  for (float v : y) std::printf(" %08x", std::bit_cast<unsigned>(v));
  std::printf("\n");
  return 0;
}

// ---- assign -------------------------------------------------------------------------------------------------------

/// One call. Both arrays start `x_offset` and `codes_offset` elements after a 16-byte boundary; x is a buffer of its
/// exact size, for ASan, and the codes stand between guard bytes.
void check_assign(int64_t n, int k, int x_offset, int codes_offset, std::mt19937& rng) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  constexpr int kGuard = 16;
  constexpr uint8_t kUntouched = 0xee;
  std::normal_distribution<float> normal;
  std::vector<float> mids(static_cast<size_t>(k - 1));
  for (float& m : mids) m = std::round(4 * normal(rng)) / 4; // coarse, so that midpoints repeat and hit elements
  std::sort(mids.begin(), mids.end());
  std::vector<float> x_buffer(static_cast<size_t>(x_offset + n));
  float* x = x_buffer.data() + x_offset;
  for (int64_t i = 0; i < n; ++i) x[i] = i % 3 == 0 && k > 1 ? mids[rng() % mids.size()] : normal(rng);
  const float special[] = {kInf, -kInf, std::numeric_limits<float>::quiet_NaN(), -0.0f};
  for (int64_t i = 0; i < n / 4; ++i) x[rng() % n] = special[i % 4];

  std::vector<uint8_t> codes_buffer(static_cast<size_t>(codes_offset + n + 2 * kGuard), kUntouched);
  uint8_t* codes = codes_buffer.data() + kGuard + codes_offset;
  const uint64_t launches = lc::emu::launch_count();
  lc::cuda::assign(x, n, mids.data(), k, codes, nullptr);

  const std::string which = "n " + std::to_string(n) + ", k " + std::to_string(k) + ", x + " +
                            std::to_string(x_offset) + ", codes + " + std::to_string(codes_offset);
  expect(lc::emu::launch_count() - launches == (n > 0 ? 1 : 0), "one launch if there is anything to do: " + which);
  int64_t wrong = 0;
  for (int64_t i = 0; i < n; ++i)
    wrong += codes[i] != std::count_if(mids.begin(), mids.end(), [&](float m) { return m < x[i]; });
  expect(wrong == 0, which + ": " + std::to_string(wrong) + " codes are wrong");
  std::fill(codes, codes + n, kUntouched);
  expect(std::count(codes_buffer.begin(), codes_buffer.end(), kUntouched) == std::ssize(codes_buffer),
         "nothing is written around the codes: " + which);
}

void run_assign() {
  std::mt19937 rng(7);
  for (int64_t n : {0, 1, 3, 4, 5, 127, 1000, 4097})
    for (int k : {1, 2, 3, 16, 17, 256})
      for (const auto& [x_offset, codes_offset] : {std::pair{0, 0}, {1, 0}, {1, 1}, {2, 3}, {3, 3}})
        check_assign(n, k, x_offset, codes_offset, rng);
  for (int k : {4, 5, 8, 9, 32, 33, 64, 65, 128, 129, 255}) check_assign(500, k, 3, 1, rng); // each kernel's edges
  // More than one turn of the grid-stride loop, the last one not full.
  const int64_t one_turn = lc::cuda::kMaxGrid * 256 * 4;
  for (int k : {16, 256}) check_assign(one_turn + one_turn / 3 + 7, k, 1, 3, rng);
}

// ---- features -----------------------------------------------------------------------------------------------------
// Each kernel leaves one result per thread or a few counts; run_features says what CUDA gives.

__global__ void collectives(int* out) {
  constexpr unsigned kAll = 0xffffffff;
  const int t = threadIdx.x, lane = t % 32;
  int* mine = out + 32 * t;
  *mine++ = __shfl_sync(kAll, lane, 5);
  *mine++ = __shfl_sync(kAll, lane, 9, 8); // source 1 of each group of 8
  *mine++ = __shfl_up_sync(kAll, lane, 3);
  *mine++ = __shfl_up_sync(kAll, lane, 3, 16);
  *mine++ = __shfl_down_sync(kAll, lane, 3, 16);
  *mine++ = __shfl_xor_sync(kAll, lane, 17);
  *mine++ = __shfl_xor_sync(kAll, lane, 16, 16);
  *mine++ = static_cast<int>(__ballot_sync(kAll, lane % 3 == 0));
  *mine++ = __any_sync(kAll, lane == 31);
  *mine++ = __any_sync(kAll, lane == 32);
  *mine++ = __all_sync(kAll, lane < 32);
  *mine++ = __all_sync(kAll, lane < 31);
  *mine++ = static_cast<int>(__match_any_sync(kAll, lane % 4));
  *mine++ = __reduce_add_sync(kAll, lane);
  *mine++ = __reduce_min_sync(kAll, lane - 7);
  *mine++ = __reduce_max_sync(kAll, lane - 7);
  *mine++ = static_cast<int>(__reduce_or_sync(kAll, static_cast<unsigned>(lane)));
  *mine++ = __syncthreads_count(t % 2);
  *mine++ = __syncthreads_or(t == 63);
  *mine++ = __syncthreads_and(t < 63);
  *mine++ = __syncthreads_count(t % 4 == 0);
  // The two halves of a warp meet independently, and in any order.
  const unsigned half_mask = lane < 16 ? 0x0000ffff : 0xffff0000;
  for (int i = 0; i < (lane < 16 ? 3 : 1); ++i) *mine = __reduce_add_sync(half_mask, lane);
  ++mine;
  const double pair = __shfl_xor_sync(kAll, lane + 0.5, 1); // 8 bytes
  *mine++ = static_cast<int>(2 * pair);
  __syncwarp();
  *mine++ = blockIdx.x + 10 * blockIdx.y + 100 * gridDim.x + 1000 * gridDim.y + 10000 * blockDim.x;
}

void check_collectives() {
  std::vector<int> out(64 * 32);
  lc::cuda::launch({1, 64}, collectives, out.data());
  for (int t = 0; t < 64; ++t) {
    const int* mine = out.data() + 32 * t;
    const int lane = t % 32;
    const int expected[] = {5,
                            lane / 8 * 8 + 1,
                            lane >= 3 ? lane - 3 : lane,
                            lane % 16 >= 3 ? lane - 3 : lane,
                            lane % 16 + 3 < 16 ? lane + 3 : lane,
                            lane ^ 17,
                            lane < 16 ? lane : lane - 16, // only the lower group may be read
                            0b01001001001001001001001001001001,
                            1,
                            0,
                            1,
                            0,
                            0x11111111 << lane % 4,
                            496,
                            -7,
                            24,
                            31,
                            32,
                            1,
                            0,
                            16,
                            lane < 16 ? 120 : 376,
                            2 * (lane ^ 1) + 1,
                            640000 + 1000 + 100};
    for (size_t i = 0; i < std::size(expected); ++i)
      expect(mine[i] == expected[i], "collective " + std::to_string(i) + " of thread " + std::to_string(t) + ": got " +
                                         std::to_string(mine[i]) + ", not " + std::to_string(expected[i]));
  }
}

__global__ void short_warp(int* out) { // the last warp has 8 lanes; the mask may name all 32
  LC_SHARED(int, s, 40);
  s[39 - threadIdx.x] = __reduce_add_sync(0xffffffff, 1);
  __syncthreads();
  out[40 * blockIdx.x + threadIdx.x] = s[threadIdx.x];
}

__global__ void atomics(unsigned* out, float* sum) {
  atomicAdd(&out[0], 2);
  atomicSub(&out[1], 1);
  atomicMin(&out[2], threadIdx.x);
  atomicMax(&out[3], threadIdx.x);
  atomicOr(&out[4], 1u << threadIdx.x % 32);
  atomicAnd(&out[5], ~(1u << threadIdx.x % 32));
  atomicXor(&out[6], 1u);
  atomicInc(&out[7], 9);
  if (atomicExch(&out[8], 1) == 0) atomicAdd(&out[9], 1);
  if (atomicCAS(&out[10], 0, threadIdx.x + 1) == 0) atomicAdd(&out[11], 1);
  atomicAdd(sum, 0.5f);
}

/// order[phase][i] is the thread that came i-th in the phase.
__global__ void record_order(int* order, int* arrivals) {
  for (int phase = 0; phase < 3; ++phase) {
    order[64 * phase + atomicAdd(&arrivals[phase], 1)] = threadIdx.x;
    __syncthreads();
  }
}

void check_order() {
  std::vector<int> order(3 * 64), arrivals(3);
  lc::cuda::launch({1, 64}, record_order, order.data(), arrivals.data());
  const bool ascending = std::is_sorted(order.begin(), order.begin() + 64);
  const bool descending = std::is_sorted(order.begin(), order.begin() + 64, std::greater<int>());
  const uint64_t seed = lc::emu::options().seed;
  EXPECT(ascending == (seed == 0) && descending == (seed == 1));
  // From phase to phase the order is another one: few threads keep their rank but for the one or two by which those
  // that open a phase shift the others.
  int kept = 0;
  for (int i = 0; i < 64; ++i) {
    const auto rank = [&](int phase) {
      return std::find(&order[64 * phase], &order[64 * phase + 63], i) - &order[64 * phase];
    };
    kept += std::abs(rank(1) - rank(2)) <= 2;
  }
  EXPECT(seed > 1 ? kept < 32 : kept > 56);
}

__global__ void throws(int) {
  if (threadIdx.x == 40) throw lc::Error("thrown in a kernel");
  __syncwarp(); // where the others are abandoned
}
__global__ void launches() { lc::cuda::launch({1, 64}, throws, 0); }

void run_features() {
  check_collectives();
  check_order();

  std::vector<int> sums(80);
  lc::cuda::launch({2, 40}, short_warp, sums.data());
  for (int t = 0; t < 80; ++t) EXPECT(sums[t] == (t % 40 < 8 ? 8 : 32));

  std::vector<unsigned> a = {0, 1000, 99, 0, 0, ~0u, 0, 0, 0, 0, 0, 0};
  float sum = 0;
  lc::cuda::launch({1, 75}, atomics, a.data(), &sum);
  EXPECT(a[10] >= 1 && a[10] <= 75);
  a[10] = 0;
  EXPECT((a == std::vector<unsigned>{150, 925, 0, 74, ~0u, 0, 1, 5, 1, 1, 0, 1}));
  EXPECT(sum == 37.5f);

  std::string message;
  try {
    lc::cuda::launch({3, 64}, throws, 0);
  } catch (const lc::Error& e) {
    message = e.what();
  }
  EXPECT(message == "thrown in a kernel");
  message.clear();
  try {
    lc::cuda::launch({1, 1}, launches);
  } catch (const lc::emu::Error& e) {
    message = e.what();
  }
  EXPECT(message.find("a kernel launches a kernel") != std::string::npos);
  check_collectives(); // a launch after a failed one is sound

  EXPECT(__popc(0xf0f0) == 8 && __popcll(~0ull) == 64);
  EXPECT(__clz(0) == 32 && __clz(1) == 31 && __clz(-1) == 0 && __clzll(1) == 63);
  EXPECT(__ffs(0) == 0 && __ffs(8) == 4 && __ffsll(1ll << 40) == 41);
  EXPECT(__float_as_uint(1.0f) == 0x3f800000 && __int_as_float(0x40000000) == 2.0f);
  EXPECT(__funnelshift_l(0x80000000, 1, 1) == 3 && __funnelshift_r(1, 1, 1) == 0x80000000);
  EXPECT(__half2float(__float2half(65504.0f)) == 65504.0f && std::isinf(__half2float(__float2half(65520.0f))));
  EXPECT(__float2half(1.0f + 1.0f / 2048).bits == 0x3c00 && __float2half(1.0f + 3.0f / 2048).bits == 0x3c02); // to even
  EXPECT(__float2bfloat16(1.0f + 1.0f / 256).bits == 0x3f80 && __float2bfloat16(1.0f + 3.0f / 256).bits == 0x3f82);
  EXPECT(__float2bfloat16(NAN).bits == 0x7fff && __bfloat162float(__float2bfloat16(-2.0f)) == -2.0f);
  EXPECT(sizeof(float4) == 16 && alignof(float4) == 16 && alignof(float2) == 8 && alignof(uchar4) == 4);
  EXPECT(alignof(short4) == 8 && alignof(half2) == 4 && alignof(double2) == 16);
}

} // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  const int arguments = mode == "bugs" ? 2 : mode == "bug" ? 4 : 3;
  if (argc != arguments) return 2;
  if (mode != "bugs") lc::emu::set_seed(std::strtoull(argv[argc - 1], nullptr, 10));

  if (mode == "bugs")
    for (int i = 0; i < lc::cuda::planted::count(); ++i) std::printf("%s\n", lc::cuda::planted::name(i));
  else if (mode == "bug")
    return run_bug(std::atoi(argv[2]));
  else if (mode == "assign")
    run_assign();
  else if (mode == "features")
    run_features();
  else
    return 2;
  return differences != 0;
}
