// The program of test_cuda_compile.py, built by nvcc: what a caller is told where there is no GPU.
#include "assign.h"
#include "error.h"
#include <cstdio>

int main() {
  const float x[1] = {0};
  uint8_t code = 0;
  try {
    lc::cuda::assign(x, 0, nullptr, 1, &code, nullptr); // nothing to launch, so nothing to complain of
    lc::cuda::assign(x, 1, nullptr, 1, &code, nullptr);
  } catch (const lc::Error& e) {
    std::printf("lc::Error: %s\n", e.what());
    return 0;
  }
  std::printf("launched\n");
  return 1;
}
